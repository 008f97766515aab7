use std::{
    env,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use ldm_pipeline::{
    Error,
    atomic::PartialDir,
    config::RunConfig,
    memory::{available_memory, peak_memory},
    plan::{Happening, Options, Probe, ProbeEnd, ProbeRun, Reading, make_plan},
    train::Stage,
};

use super::train::{ALL, DIFFUSION, VAE};
use crate::{
    args::{PlanArgs, StageName},
    device::DeviceName,
    output::{note, print},
    progress::Progress,
};

/// Share of the free memory that a training may take by default.
const SHARE: f64 = 0.9;
/// How often a running probe is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

pub(crate) fn run(args: PlanArgs) -> Result<(), Error> {
    let mut config = RunConfig::load(&args.config, &args.overrides)?;
    if let Some(data) = &args.data {
        config.data.path = Some(data.clone());
    }
    let stages = match (args.stage, &config.stage2) {
        (Some(StageName::Vae), _) | (None, None) => VAE,
        (Some(StageName::Diffusion), _) => DIFFUSION,
        (Some(StageName::All), _) | (None, Some(_)) => ALL,
    };
    let device = args.device.device;
    let on_host = device.is_host();
    let available = available_memory().map(|bytes| (SHARE * bytes as f64) as u64);
    let options = Options {
        memory: args.memory.or(available),
        available,
        probe_steps: args.probe_steps,
        probe_seconds: args.probe_seconds as f64,
        images: args.images as usize,
        on_host,
    };
    let mut runner = Runner {
        device,
        limit: Duration::from_secs(args.probe_seconds),
        memory: available.filter(|_| on_host),
        // Hears Ctrl-C.
        progress: Progress::new(),
    };
    let mut run = |config: &RunConfig, probe: &Probe| runner.run(config, probe);
    let plan = make_plan(&config, stages, &options, &mut run, &mut |text| note(text))?;
    match plan {
        None => print("stopped: nothing was left behind"),
        Some(plan) if args.json => {
            print(serde_json::to_string_pretty(&plan).expect("a plan is plain data"))
        }
        Some(plan) => print(plan.to_string().trim_end()),
    }
}

/// Makes probes in processes of their own.
struct Runner {
    device: DeviceName,
    /// Of a probe.
    limit: Duration,
    /// What a probe may take.
    memory: Option<u64>,
    progress: Progress,
}

impl Runner {
    /// Makes a probe; `None` if the user stopped it.
    fn run(&mut self, config: &RunConfig, probe: &Probe) -> Result<Option<ProbeRun>, Error> {
        let dir = PartialDir::create(&env::temp_dir().join("ldm-plan"))?;
        probe.prepare(config, dir.path())?;
        let train = match probe.stage {
            Stage::Vae => "vae",
            Stage::Diffusion => "diffusion",
        };
        let tasks: &[&str] = match probe.needs_first_stage(config) {
            true => &["first-stage", train],
            false => &[train],
        };
        let mut last = None;
        for task in tasks {
            let mut process = Process::start(dir.path(), task, &self.device)?;
            let Some(end) = self.watch(&mut process, probe)? else {
                return Ok(None);
            };
            let stop = end != ProbeEnd::Complete;
            last = Some(ProbeRun {
                readings: std::mem::take(&mut process.readings),
                end,
            });
            if stop {
                break;
            }
        }
        Ok(last)
    }

    /// Waits until a process ends or has to be ended; `None` if the user wants to stop.
    fn watch(&self, process: &mut Process, probe: &Probe) -> Result<Option<ProbeEnd>, Error> {
        let began = Instant::now();
        loop {
            match process.lines.recv_timeout(INTERVAL) {
                Ok(line) => {
                    if let Ok(reading) = serde_json::from_str::<Reading>(&line) {
                        process.readings.push(reading);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return process.finish(),
            }
            let enough = |reading: &Reading| {
                probe.steps_only
                    && matches!(reading.happening, Happening::Step { step, .. } if step >= probe.steps)
            };
            let peak = || peak_memory(Some(process.child.id()));
            let end = if self.progress.flow().is_break() {
                None
            } else if process.readings.last().is_some_and(enough) {
                Some(ProbeEnd::Complete)
            } else if began.elapsed() > self.limit {
                Some(ProbeEnd::TimeUp)
            } else if self.memory.is_some_and(|most| peak() > Some(most)) {
                Some(ProbeEnd::MemoryUp)
            } else {
                continue;
            };
            process.kill();
            return Ok(end);
        }
    }
}

/// A process of this program that makes a probe. Dropped, it is ended.
struct Process {
    child: Child,
    /// Lines of its standard output.
    lines: Receiver<String>,
    /// All of its standard error, when it has ended.
    complaints: Option<thread::JoinHandle<String>>,
    readings: Vec<Reading>,
}

impl Process {
    fn start(dir: &std::path::Path, task: &str, device: &DeviceName) -> Result<Self, Error> {
        let failed = |error: std::io::Error| {
            Error::Request(format!("can't start a process to measure in: {error}"))
        };
        let mut child = Command::new(env::current_exe().map_err(failed)?)
            .arg("plan-probe")
            .arg(dir)
            .args(["--task", task, "--device", &device.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (sender, lines) = mpsc::channel();
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let complaints = child.stderr.take().map(|mut stream| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = stream.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        Ok(Self {
            child,
            lines,
            complaints,
            readings: Vec::new(),
        })
    }

    /// How it ended by itself.
    fn finish(&mut self) -> Result<Option<ProbeEnd>, Error> {
        let failed = |what: String| Err(Error::Request(format!("a measurement failed: {what}")));
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(error) => return failed(error.to_string()),
        };
        let text = (self.complaints.take())
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        match status {
            status if status.success() => Ok(Some(ProbeEnd::Complete)),
            status if is_killed(status) => Ok(Some(ProbeEnd::MemoryUp)),
            // Ctrl-C goes to all processes of a terminal.
            status if is_interrupted(status) => Ok(None),
            status => match text.find("error: ") {
                Some(at) => failed(text[at + "error: ".len()..].trim_end().to_owned()),
                None => failed(format!("{status}\n{}", text.trim_end())),
            },
        }
    }

    fn kill(&mut self) {
        // It may just have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether the system ended a process, which it does to one that takes the last memory.
fn is_killed(status: std::process::ExitStatus) -> bool {
    signal(status) == Some(9)
}

fn is_interrupted(status: std::process::ExitStatus) -> bool {
    signal(status) == Some(2)
}

#[cfg(unix)]
fn signal(status: std::process::ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(not(unix))]
fn signal(_: std::process::ExitStatus) -> Option<i32> {
    None
}
