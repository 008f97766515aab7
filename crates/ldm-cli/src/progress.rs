//! Progress bars on a terminal; a line now and then where there is none.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use ldm_pipeline::train::{Event, StepReport};

use crate::output::note;

/// Time between two lines where the output is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how a long piece of work gets on, and hears Ctrl-C.
pub(crate) struct Progress {
    interrupt: Interrupt,
    bar: ProgressBar,
    /// What the bar counts.
    title: String,
    started: Instant,
    /// Value of the counter when the bar appeared: a resumed run doesn't start from 0.
    started_at: u64,
    last_line: Option<Instant>,
    /// What tells where it isn't the first of several processes or devices, which then tells only of what is wrong.
    beside: Option<String>,
}

/// Set once Ctrl-C was pressed.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for Ctrl-C, which is to be called once.
    pub(crate) fn listen() -> Self {
        let interrupt = Self::default();
        let flag = interrupt.0.clone();
        // Only a second program-wide handler could fail here.
        let _ = ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                note("\nstopped at once; the last checkpoint is intact");
                std::process::exit(130);
            }
            note("\nstopping after this step; press Ctrl-C again to stop at once");
        });
        interrupt
    }
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self::hearing(Interrupt::listen())
    }

    /// Stops by `interrupt`.
    pub(crate) fn hearing(interrupt: Interrupt) -> Self {
        Self {
            interrupt,
            bar: ProgressBar::hidden(),
            title: String::new(),
            started: Instant::now(),
            started_at: 0,
            last_line: None,
            beside: None,
        }
    }

    /// For `who`, one of several processes or devices beside the first, which shows no progress.
    pub(crate) fn beside(who: String, interrupt: Interrupt) -> Self {
        Self {
            beside: Some(who),
            ..Self::hearing(interrupt)
        }
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.interrupt.0.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Shows an event of a training stage.
    pub(crate) fn on_event(&mut self, event: Event) -> ControlFlow<()> {
        if let Some(who) = &self.beside {
            if let Event::Warning(text) = event {
                note(format_args!("{who}: warning: {text}"));
            }
            return self.flow();
        }
        match event {
            Event::Step(report) => self.step(&report),
            Event::Work { what, done, total } => self.count(what, done as u64, total as u64, ""),
            Event::Note(text) => self.say(text),
            Event::Warning(text) => self.say(&format!("warning: {text}")),
            Event::Saved(path) => self.say(&format!("wrote {}", path.display())),
        }
        self.flow()
    }

    fn step(&mut self, report: &StepReport) {
        let shown = ["loss", "total", "rec", "kl", "codebook", "d_weight", "lr"];
        let mut details: Vec<String> = (report.values.iter())
            .filter(|(name, _)| shown.contains(name))
            .map(|(name, value)| format!("{name} {}", short(*value)))
            .collect();
        let done = report.step.saturating_sub(self.started_at.min(report.step));
        let rate = done as f64 * report.images as f64 / self.started.elapsed().as_secs_f64();
        if self.title == report.stage.to_string() && done > 0 {
            details.insert(0, format!("{rate:.1} img/s"));
        }
        let title = report.stage.to_string();
        self.count(&title, report.step, report.total, &details.join(", "));
    }

    /// Sets the counter of the piece of work called `title`.
    pub(crate) fn count(&mut self, title: &str, done: u64, total: u64, details: &str) {
        if self.title != title {
            self.finish();
            self.title = title.to_owned();
            self.started = Instant::now();
            self.started_at = done;
            self.bar =
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
            self.bar.set_style(
                ProgressStyle::with_template(
                    "{prefix:14} {bar:24} {pos}/{len} [{elapsed} < {eta}] {wide_msg}",
                )
                .expect("the template is a constant"),
            );
            self.bar.set_prefix(self.title.clone());
        }
        self.bar.set_position(done);
        self.bar.set_message(details.to_owned());
        if self.bar.is_hidden() {
            let due = self
                .last_line
                .is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
            if due || done == total {
                self.last_line = Some(Instant::now());
                let left = HumanDuration(self.bar.eta());
                note(format_args!(
                    "{title} {done}/{total}, {left:#} left  {details}"
                ));
            }
        }
        if done == total {
            self.finish();
        }
    }

    /// Prints a line above the bar.
    pub(crate) fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            note(text);
        } else {
            self.bar.println(text);
        }
    }

    /// Leaves the bar as it is and starts a new line.
    pub(crate) fn finish(&mut self) {
        self.bar.abandon();
        self.bar = ProgressBar::hidden();
        self.title.clear();
        self.last_line = None;
    }
}

/// Three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.2e}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
