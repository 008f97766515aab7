//! What a stage leaves behind besides its weights: figures, sheets, TensorBoard events.

use image::RgbImage;

use super::{Event, Observer, Stage, run_loop::with_causes};
use crate::{
    atomic::{self, WriteError},
    error::Error,
    metrics::{EventWriter, MetricsLog},
    run::RunDir,
    sheet::encode_png,
};

/// Writes the records of one stage. Steps count from 1 in all of them.
pub(super) struct Recorder<'a> {
    run: &'a RunDir,
    stage: Stage,
    metrics: MetricsLog,
    events: EventWriter,
    /// Whether the last write failed, and was complained of.
    failing: bool,
}

impl<'a> Recorder<'a> {
    /// Goes on after step `start`: records of later steps are cut off.
    pub(super) fn open(run: &'a RunDir, stage: Stage, start: u64) -> Result<Self, Error> {
        Ok(Self {
            run,
            stage,
            metrics: MetricsLog::open(&run.metrics(stage), start + 1)?,
            events: EventWriter::create(&run.stage(stage), start + 1)?,
            failing: false,
        })
    }

    /// Records the figures of `step` and, if there is one, its sheet. A failure, such as a full disk, is told to the observer once and
    /// doesn't stop the run: later writes may succeed.
    pub(super) fn record(
        &mut self,
        step: u64,
        values: &[(&'static str, f64)],
        sheet: Option<RgbImage>,
        observer: &mut Observer,
    ) {
        match self.write(step, values, sheet, observer) {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    let text = format!("nothing recorded of step {step}: {}", with_causes(&error));
                    let _ = observer(Event::Warning(&text));
                }
            }
        }
    }

    fn write(
        &mut self,
        step: u64,
        values: &[(&'static str, f64)],
        sheet: Option<RgbImage>,
        observer: &mut Observer,
    ) -> Result<(), Error> {
        self.metrics.log(step, values.iter().copied())?;
        self.events.scalars(step, values.iter().copied())?;
        let Some(sheet) = sheet else {
            return Ok(());
        };
        let path = self
            .run
            .samples(self.stage)
            .join(format!("step-{step:08}.png"));
        let png = encode_png(&sheet, &[]).map_err(|source| WriteError {
            action: "encode",
            path: path.clone(),
            source,
        })?;
        atomic::write_file(&path, &png)?;
        self.events
            .image(step, "preview", sheet.dimensions(), &png)?;
        let _ = observer(Event::Saved(&path));
        Ok(())
    }
}
