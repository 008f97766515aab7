//! The command `ldm`. Arguments in, library calls, progress bars and files out; the work is in `ldm-pipeline`.

mod args;
mod commands;
mod device;
mod output;
mod progress;

use std::process::ExitCode;

use clap::Parser;
use ldm_pipeline::Error;

use output::note;

fn main() -> ExitCode {
    ldm_pipeline::memory::keep_freed_memory();
    let cli = args::Cli::parse();
    match commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// One `error:` line, its causes, and a `help:` line where there is something to do.
pub(crate) fn report(error: &Error) {
    note(format_args!("error: {error}"));
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        cause = error.source();
        // Many errors repeat their cause.
        if said.contains(&text) {
            continue;
        }
        for (index, line) in text.trim_end().lines().enumerate() {
            let prefix = if index == 0 { "  cause: " } else { "         " };
            note(format_args!("{prefix}{line}"));
        }
        said = text;
    }
    if let Some(help) = error.help() {
        note(format_args!("help: {help}"));
    }
}
