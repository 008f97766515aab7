use std::io::{self, Write};

use ldm_pipeline::{
    Error,
    plan::{ProbeTask, Reading, run_probe},
    train::Stage,
};

use crate::args::{PlanProbeArgs, TaskName};

/// Does a part of a probe; its readings go to standard output, one JSON object a line.
pub(crate) fn run(args: &PlanProbeArgs) -> Result<(), Error> {
    let task = match args.task {
        TaskName::FirstStage => ProbeTask::FirstStage,
        TaskName::Vae => ProbeTask::Train(Stage::Vae),
        TaskName::Diffusion => ProbeTask::Train(Stage::Diffusion),
    };
    let device = args.device.device.open();
    run_probe(&args.dir, task, &device, &mut |reading: &Reading| {
        let line = serde_json::to_string(reading).expect("a reading is plain data");
        // If nobody reads it, whoever started this process is about to end it.
        let _ = writeln!(io::stdout(), "{line}");
    })
}
