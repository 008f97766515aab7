//! One file per command: what its options mean, and what it prints.

mod convert;
mod data;
mod decode;
mod devices;
mod encode;
mod eval;
mod info;
mod plan;
mod plan_probe;
mod quickstart;
mod reconstruct;
mod report;
mod sample;
mod train;

use ldm_pipeline::Error;

use crate::args::{Command, TrainCommand};

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Quickstart(args) => quickstart::run(args),
        Command::Data(command) => data::run(command),
        Command::Train(TrainCommand::Vae(args)) => train::run(args, train::VAE),
        Command::Train(TrainCommand::Diffusion(args)) => train::run(args, train::DIFFUSION),
        Command::Train(TrainCommand::All(args)) => train::run(args, train::ALL),
        Command::Plan(args) => plan::run(args),
        Command::PlanProbe(args) => plan_probe::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Encode(args) => encode::run(args),
        Command::Decode(args) => decode::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Eval(command) => eval::run(command),
        Command::Reconstruct(args) => reconstruct::run(args),
        Command::Report(args) => report::run(&args),
        Command::Info(args) => info::run(args),
        Command::Devices => devices::run(),
    }
}
