//! `ldm eval`: pictures and networks in, measures out.

mod fakes;
mod nearest;
mod network;
mod pictures;
mod reconstruction;
mod report;
mod samples;

use ldm_pipeline::Error;

use crate::args::EvalCommand;

/// Runs one of the commands to its end.
pub(super) fn run(command: EvalCommand) -> Result<(), Error> {
    match command {
        EvalCommand::Reconstruction(args) => reconstruction::run(&args),
        EvalCommand::Samples(args) => samples::run(&args),
        EvalCommand::Nearest(args) => nearest::run(&args),
    }
}

/// An error of the crate of measures, in this program's terms.
fn failed(error: ldm_eval::Error) -> Error {
    let help = error.help();
    Error::Evaluation {
        source: Box::new(error),
        help,
    }
}
