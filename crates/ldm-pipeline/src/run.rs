//! The directory of a run.

use std::path::{Path, PathBuf};

use crate::{
    atomic,
    config::{RunConfig, Stage2Config},
    error::{ConfigError, Error},
    hardware::{self, Hardware},
    parallel::Workers,
    train::Stage,
};

/// The directory of a run: `config.toml`, a folder per stage, and the model at the end. It knows the processes that train in it, of which
/// the first alone writes.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    changes: Vec<String>,
    hardware: Option<Hardware>,
    workers: Workers,
}

impl RunDir {
    /// Opens the directory for a run of `config`. It need not exist, and nothing is written before a stage starts.
    ///
    /// Without `resume` it must not hold a checkpoint of `stages` yet. With it, the configuration may differ from that of
    /// the interrupted run, but for the architectures.
    ///
    /// # Errors
    /// If there is a run and `resume` is off, the architecture differs, or the directory can't be read.
    pub fn open(
        path: &Path,
        config: &RunConfig,
        stages: &[Stage],
        resume: bool,
    ) -> Result<Self, Error> {
        let mut run = Self::at(path);
        let config_path = run.config();
        let started = stages
            .iter()
            .any(|&stage| !is_empty(&run.checkpoints(stage)));
        if started && !resume {
            return Err(Error::RunExists(path.into()));
        }
        if started && config_path.is_file() {
            let before = RunConfig::load(&config_path, &[])?;
            if let Some(section) = changed_architecture(&before, config, stages) {
                return Err(Error::ConfigChanged {
                    path: path.into(),
                    section,
                });
            }
            run.changes = before.changes(config);
        }
        if path.is_dir() {
            // A killed process may have left the model of stage 1 aside, where stage 2 would miss it.
            atomic::clean_up(path)?;
        }
        Ok(run)
    }

    /// The directory of a run that is only looked at.
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.into(),
            changes: Vec::new(),
            hardware: None,
            workers: Workers::default(),
        }
    }

    /// [`open`](Self::open) for several processes, all of which have to call it.
    ///
    /// # Errors
    /// As for [`open`](Self::open), in the first process; the others wait for it.
    pub fn open_shared(
        path: &Path,
        config: &RunConfig,
        stages: &[Stage],
        resume: bool,
        workers: &Workers,
    ) -> Result<Self, Error> {
        let mut run = Self::at(path);
        workers.first_does(|| {
            run = Self::open(path, config, stages, resume)?;
            // Later, when all look for checkpoints, there must be nothing left to clean up.
            for &stage in stages {
                atomic::clean_up(&run.checkpoints(stage))?;
            }
            Ok(true)
        })?;
        run.workers = workers.clone();
        Ok(run)
    }

    /// Has the stages record the machine that they run on.
    #[must_use]
    pub fn with_hardware(self, hardware: Hardware) -> Self {
        Self {
            hardware: Some(hardware),
            ..self
        }
    }

    /// The processes that train in it.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Creates what a stage writes into, and records configuration and machine. Called when nothing else can be wrong.
    ///
    /// # Errors
    /// If the directory can't be written to.
    pub(crate) fn start(&self, stage: Stage, config: &RunConfig) -> Result<(), Error> {
        if !self.workers.is_first() {
            return Ok(());
        }
        for folder in [self.stage(stage), self.samples(stage)] {
            atomic::create_dir(&folder)?;
            atomic::clean_up(&folder)?;
        }
        atomic::write_file(&self.config(), config.to_toml().as_bytes())?;
        if let Some(hardware) = &self.hardware {
            hardware.record(&self.hardware())?;
        }
        Ok(())
    }

    /// What differs from the configuration of the interrupted run and matters to a stage, a line `key: before -> now` each.
    pub(crate) fn changes(&self, stage: Stage) -> impl Iterator<Item = &str> {
        let other = match stage {
            Stage::Vae => "stage2.",
            Stage::Diffusion => "stage1.",
        };
        (self.changes.iter().map(String::as_str)).filter(move |change| !change.starts_with(other))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration with all defaults written out.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// The machines that it was trained on.
    pub fn hardware(&self) -> PathBuf {
        self.path.join(hardware::FILE)
    }

    /// Folder of a stage.
    pub fn stage(&self, stage: Stage) -> PathBuf {
        self.path.join(stage.folder())
    }

    /// Checkpoints of a stage.
    pub fn checkpoints(&self, stage: Stage) -> PathBuf {
        self.stage(stage).join("checkpoints")
    }

    /// Sheets drawn during a stage.
    pub fn samples(&self, stage: Stage) -> PathBuf {
        self.stage(stage).join("samples")
    }

    /// Figures of every step of a stage.
    pub fn metrics(&self, stage: Stage) -> PathBuf {
        self.stage(stage).join("metrics.jsonl")
    }

    /// Notes and warnings, a JSON object a line.
    pub fn log(&self) -> PathBuf {
        self.path.join("log.jsonl")
    }

    /// The exported model: after stage 1 its autoencoder, after stage 2 all of it.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }
}

/// Whether a folder has nothing in it, or isn't there.
fn is_empty(folder: &Path) -> bool {
    folder
        .read_dir()
        .map_or(true, |mut entries| entries.next().is_none())
}

/// The first section, of those that `stages` train, in which the two describe different networks or draws.
fn changed_architecture(
    before: &RunConfig,
    now: &RunConfig,
    stages: &[Stage],
) -> Option<&'static str> {
    // Measured at the end of stage 1, not chosen.
    let vae = |config: &RunConfig| config.stage1.autoencoder().with_scaling_factor(1.0);
    let disc = |config: &RunConfig| config.stage1.loss.discriminator();
    let text = |stage2: &Stage2Config| stage2.text.as_ref().map(|text| text.bert.clone());
    let class = |stage2: &Stage2Config| stage2.class.as_ref().map(|class| class.embedder());
    let mask = |stage2: &Stage2Config| stage2.semantic.as_ref().map(|mask| mask.rescaler());
    if before.seed != now.seed {
        return Some("seed");
    }
    if stages.contains(&Stage::Vae) {
        if vae(before) != vae(now) {
            return Some(match now.stage1.vq {
                Some(_) => "autoencoder (stage1.vq)",
                None => "autoencoder (stage1.vae)",
            });
        }
        if disc(before) != disc(now) {
            return Some("discriminator (stage1.loss)");
        }
    }
    if stages.contains(&Stage::Diffusion)
        && let (Some(before), Some(now)) = (&before.stage2, &now.stage2)
    {
        if before.unet != now.unet {
            return Some("U-Net (stage2.unet)");
        }
        if text(before) != text(now) {
            return Some("text encoder (stage2.text.bert)");
        }
        if class(before) != class(now) {
            return Some("class embedding (stage2.class)");
        }
        if mask(before) != mask(now) {
            return Some("semantic mask (stage2.semantic)");
        }
        if before.noise != now.noise {
            return Some("noise schedule (stage2.noise)");
        }
    }
    None
}

/// The second stage's section of a configuration.
///
/// # Errors
/// If the configuration has none.
pub(crate) fn stage2(config: &RunConfig) -> Result<&Stage2Config, Error> {
    let missing = || ConfigError::Value {
        file: "the configuration".into(),
        key: "stage2".into(),
        problem: "is missing: it describes only an autoencoder, for `ldm train vae`".into(),
    };
    Ok(config.stage2.as_ref().ok_or_else(missing)?)
}
