//! Lines on standard output and standard error, either of which may be a full disk or a pipe that nobody reads any more.

use std::{
    fmt::Display,
    io::{self, Write},
};

use ldm_pipeline::{Error, atomic::WriteError};

/// Prints a line of the command's result. That its reader has gone, as `head` does, is no error.
pub(crate) fn print(line: impl Display) -> Result<(), Error> {
    match writeln!(io::stdout(), "{line}") {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => Err(WriteError {
            action: "write to",
            path: "standard output".into(),
            source,
        }
        .into()),
        _ => Ok(()),
    }
}

/// Prints a line about the work. It must not end the work if nobody can read it.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
