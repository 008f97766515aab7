//! `log.jsonl`: what was said in the course of a run, for whoever looks later.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io::Write,
    ops::ControlFlow,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::json;

use super::{Event, Observer, Stage};
use crate::run::RunDir;

/// Runs `work` with an observer that also writes notes and warnings into the run's `log.jsonl`, a line
/// `{"time": s, "stage": "stage1", "step": n, "kind": "warning", "text": ".."}` each.
pub(super) fn journalled<T>(
    run: &RunDir,
    stage: Stage,
    observer: &mut Observer,
    work: impl FnOnce(&mut Observer) -> T,
) -> T {
    if !run.workers().is_first() {
        return work(observer);
    }
    let journal = Journal {
        path: run.log(),
        stage,
        step: Cell::new(0),
        waiting: RefCell::default(),
    };
    let result = work(&mut |event: Event| -> ControlFlow<()> {
        journal.hear(&event);
        observer(event)
    });
    journal.flush();
    result
}

struct Journal {
    path: PathBuf,
    stage: Stage,
    step: Cell<u64>,
    /// Lines from before the run has a folder, or from while the disk is full.
    waiting: RefCell<String>,
}

impl Journal {
    fn hear(&self, event: &Event) {
        let (kind, text) = match event {
            Event::Step(report) => return self.step.set(report.step),
            Event::Note(text) => ("note", text),
            Event::Warning(text) => ("warning", text),
            Event::Work { .. } | Event::Saved(_) => return,
        };
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let line = json!({
            "time": time,
            "stage": self.stage.folder(),
            "step": self.step.get(),
            "kind": kind,
            "text": text,
        });
        self.waiting.borrow_mut().push_str(&format!("{line}\n"));
        self.flush();
    }

    /// A run never fails for its log: what can't be written is kept for the next time.
    fn flush(&self) {
        let mut waiting = self.waiting.borrow_mut();
        let file = File::options().append(true).create(true).open(&self.path);
        if let Ok(mut file) = file
            && !waiting.is_empty()
            && file.write_all(waiting.as_bytes()).is_ok()
        {
            waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::StepReport;

    #[test]
    fn notes_and_warnings_are_kept_with_their_step() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::at(&dir.path().join("run"));
        let mut heard = 0;
        let mut observer = |_: Event| {
            heard += 1;
            ControlFlow::Continue(())
        };
        journalled(&run, Stage::Vae, &mut observer, |observer| {
            let _ = observer(Event::Note("before there is a folder"));
            std::fs::create_dir(run.path()).unwrap();
            let _ = observer(Event::Step(StepReport {
                stage: Stage::Vae,
                step: 7,
                total: 9,
                images: 1,
                values: &[],
            }));
            let _ = observer(Event::Warning("a \"quoted\" one"));
        });
        assert_eq!(heard, 3);
        let text = std::fs::read_to_string(run.log()).unwrap();
        let lines: Vec<serde_json::Value> = (text.lines())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["text"], "before there is a folder");
        assert_eq!(lines[1]["step"], 7);
        assert_eq!(lines[1]["kind"], "warning");
        assert_eq!(lines[1]["text"], "a \"quoted\" one");
    }
}
