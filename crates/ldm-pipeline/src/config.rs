//! The run configuration: one TOML file for both stages.

use std::path::{Path, PathBuf};

use ldm_autoencoder::{AutoencoderKlConfig, Lpips, Stage1LossConfig, VqModelConfig};
use ldm_diffusion::{
    BetaSchedule, DiffusionLossConfig, SamplerKind, SchedulerConfig, UNetConfig,
    conditioning::{ClassEmbedderConfig, SpatialRescalerConfig},
};
use ldm_text::LdmBertConfig;
use serde::{Deserialize, Serialize};

use crate::{
    data::DataConfig,
    error::ConfigError,
    model::{ConditionerConfig, FirstStageConfig},
    optim::{AdamConfig, LrSchedule},
};

/// Everything that decides a run's result, save the files that it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Key of all random draws.
    #[serde(default)]
    pub seed: u64,
    /// The images and how they are prepared.
    #[serde(default)]
    pub data: DataConfig,
    /// The autoencoder.
    pub stage1: Stage1Config,
    /// The diffusion model in its latent space; `None` trains only an autoencoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage2: Option<Stage2Config>,
}

/// What both stages have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Optimiser steps in all.
    pub steps: u64,
    /// Images per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimiser step; their gradients are averaged.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// The rate at each step: absolute, not scaled by batch size or devices.
    pub lr: LrSchedule,
    /// Adam, with decoupled weight decay if any.
    #[serde(default)]
    pub optimizer: AdamConfig,
    /// Largest L2 norm of all gradients together; larger ones are scaled down to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Largest decay of the exponential moving average of the weights, which is then what is exported and sampled from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Steps between checkpoints; the last step has one in any case.
    #[serde(default = "thousand")]
    pub checkpoint_every: u64,
    /// Checkpoints kept, newest first.
    #[serde(default = "two")]
    pub keep_checkpoints: usize,
    /// Steps between sheets of samples or reconstructions; the last step has one in any case.
    #[serde(default = "thousand")]
    pub sample_every: u64,
}

/// The first stage: an autoencoder and the objective it is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage1Config {
    /// Length, batch, rate.
    pub training: TrainingConfig,
    /// A KL autoencoder, under the names of its `config.json`. `scaling_factor` is measured at the end of the stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<AutoencoderKlConfig>,
    /// In its place one with a codebook, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vq: Option<VqModelConfig>,
    /// Weights of the objective's terms.
    #[serde(default)]
    pub loss: Stage1LossConfig,
    /// VGG16 for the perceptual term: a safetensors file with torchvision's key names, or a hub id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgg: Option<String>,
    /// LPIPS heads for it, a safetensors file; without them the features of all channels count alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lpips_heads: Option<PathBuf>,
}

/// The second stage: a U-Net in the frozen autoencoder's latent space, and the text encoder that is trained with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage2Config {
    /// Length, batch, rate.
    pub training: TrainingConfig,
    /// A model or run directory whose autoencoder to use, in place of the run's own stage 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_stage: Option<PathBuf>,
    /// The U-Net, under the names of its `config.json`.
    pub unet: UNetConfig,
    /// The forward process.
    #[serde(default)]
    pub noise: NoiseConfig,
    /// The objective.
    #[serde(default)]
    pub loss: DiffusionLossConfig,
    /// How the captions enter. Of `text`, `class` and `semantic` there is one; with none of them the model is unconditional.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextConfig>,
    /// How the class of an image enters, which is the folder it lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ClassConfig>,
    /// How a semantic mask enters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub semantic: Option<SemanticConfig>,
    /// The sample sheets that are drawn while training.
    #[serde(default)]
    pub preview: PreviewConfig,
}

/// The noise that is added in training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NoiseConfig {
    /// Course of the betas.
    pub schedule: BetaSchedule,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Number of training steps `T`.
    pub steps: usize,
    /// How the timesteps of a batch are drawn.
    pub timesteps: TimestepSampling,
}

/// How the timesteps of a batch are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepSampling {
    /// Independently and uniformly, as in the paper.
    #[default]
    Uniform,
    /// One from each of N equal parts of `[0, T)` for a batch of N: the same distribution, less variance between batches.
    Stratified,
}

impl Default for NoiseConfig {
    /// The paper's for its unconditional models (table 15 has .00085 and .012 for text).
    fn default() -> Self {
        Self {
            schedule: BetaSchedule::Linear,
            beta_start: 0.0015,
            beta_end: 0.0195,
            steps: 1000,
            timesteps: TimestepSampling::Uniform,
        }
    }
}

/// How captions become the U-Net's context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextConfig {
    /// The text transformer, under the names of its `config.json`. `max_position_embeddings` tokens of a caption are read.
    pub bert: LdmBertConfig,
    /// Share of captions replaced by the empty one, which is what guidance needs.
    #[serde(default = "tenth")]
    pub dropout: f64,
}

/// How classes become the U-Net's context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassConfig {
    /// Rows of the embedding: one per class, and a last one for no class.
    pub n_classes: usize,
    /// Width of the context.
    pub embed_dim: usize,
    /// Share of the classes replaced by the last one, which is what guidance needs.
    #[serde(default = "tenth")]
    pub dropout: f64,
}

/// How semantic masks become channels beside the latent's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SemanticConfig {
    /// The folder of masks: `a/b.png` belongs to the image `a/b.jpg`.
    pub masks: PathBuf,
    /// Halvings from the picture's size to the latent's.
    pub n_stages: usize,
    /// Number of labels.
    pub in_channels: usize,
    /// Channels that the U-Net gets beside the latent's.
    pub out_channels: usize,
}

/// A sheet of samples, drawn every `sample_every` steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreviewConfig {
    /// One sample per prompt; with no prompts, captions of the data.
    pub prompts: Vec<String>,
    /// Samples of an unconditional model, or captions taken from the data.
    pub count: usize,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Its steps.
    pub steps: usize,
    /// DDIM's randomness: 0 is deterministic, 1 as random as DDPM.
    pub eta: f64,
    /// Classifier-free guidance; 1 is none.
    pub guidance: f64,
}

impl Default for PreviewConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            count: 16,
            sampler: SamplerKind::Ddim,
            steps: 50,
            eta: 0.0,
            guidance: 3.0,
        }
    }
}

impl NoiseConfig {
    /// The same as diffusers' `scheduler_config.json`.
    pub fn scheduler(&self, loss: &DiffusionLossConfig) -> SchedulerConfig {
        SchedulerConfig {
            beta_schedule: self.schedule,
            num_train_timesteps: self.steps,
            prediction_type: loss.prediction_type,
            ..SchedulerConfig::latent(self.beta_start, self.beta_end)
        }
    }
}

impl RunConfig {
    /// Reads a configuration file and applies `overrides` of the form `stage1.training.steps=100`.
    ///
    /// # Errors
    /// If the file can't be read, isn't TOML, has an unknown, missing or wrong key, or the values don't fit together.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// [`load`](Self::load) from text; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As for [`load`](Self::load), except reading.
    pub fn parse(text: &str, name: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut table: toml::Table =
            toml::from_str(text).map_err(|source| ConfigError::Syntax {
                file: name.into(),
                source: Box::new(source),
            })?;
        for change in overrides {
            apply_override(&mut table, change)?;
        }
        let mut unknown = Vec::new();
        // An optional section has a `?` in its path.
        let mut note_unknown =
            |path: serde_ignored::Path| unknown.push(path.to_string().replace(".?", ""));
        let result = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(
            toml::Value::Table(table),
            &mut note_unknown,
        ));
        unknown.retain(|key| !FORMAT_TAGS.iter().any(|tag| key.ends_with(tag)));
        let config: Self = result.map_err(|error| {
            let path = error.path().to_string();
            malformed(name, &path, error.into_inner().message(), &unknown)
        })?;
        if let Some(key) = unknown.first() {
            return Err(ConfigError::UnknownKey {
                file: name.into(),
                key: key.clone(),
                suggestion: nearest(key, config.keys()),
            });
        }
        config
            .validate()
            .map_err(|(key, problem)| ConfigError::Value {
                file: name.into(),
                key: key.into(),
                problem,
            })?;
        Ok(config)
    }

    /// The configuration with all defaults written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a configuration is a TOML table")
    }

    /// Checks what the types can't; the key and the problem of the first mistake.
    fn validate(&self) -> Result<(), (&'static str, String)> {
        if i64::try_from(self.seed).is_err() {
            return Err(("seed", format!("is {}: it must be below 2^63", self.seed)));
        }
        self.data.validate()?;
        self.stage1.training.validate("stage1.training")?;
        self.stage1.validate_autoencoder()?;
        (self.stage1.loss.validate()).map_err(|e| ("stage1.loss", format!("is wrong: {e}")))?;
        let autoencoder = self.stage1.autoencoder();
        self.validate_resolution(autoencoder.factor())?;
        match &self.stage2 {
            Some(stage2) => stage2.validate(&autoencoder),
            None => Ok(()),
        }
    }

    /// Checks that every network of stage 1 can work on images of this size; `factor` is the autoencoder's.
    fn validate_resolution(&self, factor: usize) -> Result<(), (&'static str, String)> {
        let resolution = self.data.resolution;
        if !resolution.is_multiple_of(factor) {
            let problem =
                format!("is {resolution}, which the autoencoder's factor {factor} does not divide");
            return Err(("data.resolution", problem));
        }
        let loss = &self.stage1.loss;
        let discriminator = loss.discriminator().map_or(0, |disc| disc.min_image_size());
        let perceptual = if loss.perceptual_weight > 0.0 {
            Lpips::MIN_IMAGE_SIZE
        } else {
            0
        };
        let needs = [
            (
                discriminator,
                format!(
                    "a discriminator of {} layers (stage1.loss.disc_layers)",
                    loss.disc_layers
                ),
            ),
            (
                perceptual,
                "the perceptual loss (stage1.loss.perceptual_weight)".to_owned(),
            ),
        ];
        match needs.into_iter().find(|(least, _)| resolution < *least) {
            Some((least, part)) => Err((
                "data.resolution",
                format!("is {resolution}, but {part} needs at least {least}"),
            )),
            None => Ok(()),
        }
    }

    /// All keys that are set, with their sections, and those of which only one can be.
    fn keys(&self) -> Vec<String> {
        let table = toml::Table::try_from(self).expect("a configuration is a TOML table");
        let mut keys = vec![VAE.to_owned(), VQ.to_owned()];
        collect_keys("", &table, &mut keys);
        keys
    }
}

/// The error for what serde says about the section or key at `path`. A misspelt key may be what makes another one missing.
fn malformed(file: &str, path: &str, message: &str, unknown: &[String]) -> ConfigError {
    let file = file.to_owned();
    let mut names = message.split('`').skip(1).step_by(2);
    let section = |name: &str| match path {
        "" | "." => name.to_owned(),
        _ => format!("{path}.{name}"),
    };
    if message.starts_with("unknown field")
        && let Some(key) = names.next()
    {
        let section = path.strip_suffix(key).unwrap_or(path).trim_end_matches('.');
        return ConfigError::UnknownKey {
            file,
            key: format!("{section}.{key}"),
            suggestion: nearest(key, names.map(str::to_owned))
                .map(|key| format!("{section}.{key}")),
        };
    }
    if message.starts_with("missing field")
        && let Some(missing) = names.next().map(section)
    {
        let misspelt = unknown
            .iter()
            .find(|key| nearest(key, [missing.clone()]).is_some());
        return match misspelt {
            Some(key) => ConfigError::UnknownKey {
                file,
                key: key.clone(),
                suggestion: Some(missing),
            },
            None => ConfigError::Value {
                file,
                key: missing,
                problem: "is missing".into(),
            },
        };
    }
    ConfigError::Value {
        file,
        key: path.into(),
        problem: format!("is wrong: {message}"),
    }
}

/// The known key nearest to a misspelt one, if any is near.
fn nearest(key: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    (known.into_iter())
        .map(|candidate| (strsim::damerau_levenshtein(&candidate, key), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 4.min(candidate.len() / 2))
        .map(|(_, candidate)| candidate)
}

/// The sections that describe the first stage's autoencoder, one or the other.
const VAE: &str = "stage1.vae";
const VQ: &str = "stage1.vq";

/// Keys of diffusers' files that name the file's own format.
const FORMAT_TAGS: [&str; 2] = ["_class_name", "model_type"];

fn collect_keys(prefix: &str, table: &toml::Table, keys: &mut Vec<String>) {
    for (key, value) in table {
        let key = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        if let toml::Value::Table(inner) = value {
            collect_keys(&key, inner, keys);
        }
        keys.push(key);
    }
}

/// Sets `a.b.c` to the value after the equals sign, a TOML value or else a bare string.
fn apply_override(table: &mut toml::Table, change: &str) -> Result<(), ConfigError> {
    let malformed = || ConfigError::Override {
        text: change.into(),
    };
    let (key, value) = change.split_once('=').ok_or_else(malformed)?;
    let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.trim().into()));
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path
        .pop()
        .filter(|last| !last.is_empty())
        .ok_or_else(malformed)?;
    let mut table = table;
    for part in path {
        table = table
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(malformed)?;
    }
    table.insert(last.into(), value);
    Ok(())
}

impl TrainingConfig {
    fn validate(&self, section: &'static str) -> Result<(), (&'static str, String)> {
        let counts = [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("accumulation", self.accumulation as u64),
            ("checkpoint_every", self.checkpoint_every),
            ("keep_checkpoints", self.keep_checkpoints as u64),
            ("sample_every", self.sample_every),
        ];
        if let Some((field, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err((section, format!("has `{field}` = 0: it must be at least 1")));
        }
        if let Some(norm) = self
            .max_grad_norm
            .filter(|norm| norm.is_nan() || *norm <= 0.0)
        {
            return Err((
                section,
                format!("has `max_grad_norm` = {norm}: it must be above 0"),
            ));
        }
        if let Some(decay) = self.ema_decay.filter(|decay| !(0.0..1.0).contains(decay)) {
            return Err((
                section,
                format!("has `ema_decay` = {decay}: it must lie in [0, 1)"),
            ));
        }
        let lr = &self.lr;
        if !(lr.rate > 0.0 && lr.rate.is_finite() && (0.0..=lr.rate).contains(&lr.floor)) {
            let problem = format!(
                "has `lr.rate` = {} and `lr.floor` = {}: the rate must be above 0, the floor between 0 and the rate",
                lr.rate, lr.floor
            );
            return Err((section, problem));
        }
        let adam = &self.optimizer;
        let betas_fit = adam.betas.iter().all(|beta| (0.0..1.0).contains(beta));
        if !(betas_fit && adam.eps > 0.0 && adam.weight_decay >= 0.0) {
            let problem = "has a wrong `optimizer`: betas lie in [0, 1), eps above 0, weight_decay is not negative";
            return Err((section, problem.into()));
        }
        Ok(())
    }
}

impl Stage1Config {
    /// The autoencoder's architecture, of either kind.
    ///
    /// # Panics
    /// If neither `vae` nor `vq` is there, which no configuration that was read lacks.
    pub fn autoencoder(&self) -> FirstStageConfig {
        match (&self.vae, &self.vq) {
            (Some(vae), _) => FirstStageConfig::Kl(vae.clone()),
            (None, Some(vq)) => FirstStageConfig::Vq(vq.clone()),
            (None, None) => panic!("stage 1 needs `vae` or `vq`"),
        }
    }

    /// Checks that there is one autoencoder, and that it is one for images.
    fn validate_autoencoder(&self) -> Result<(), (&'static str, String)> {
        let (section, result, channels) = match (&self.vae, &self.vq) {
            (Some(vae), None) => (VAE, vae.validate(), [vae.in_channels, vae.out_channels]),
            (None, Some(vq)) => (VQ, vq.validate(), [vq.in_channels, vq.out_channels]),
            (Some(_), Some(_)) => {
                let problem = format!("is given beside `{VAE}`: a run trains one autoencoder");
                return Err((VQ, problem));
            }
            (None, None) => {
                let problem = format!(
                    "is missing: it describes the autoencoder, or `{VQ}` one with a codebook"
                );
                return Err((VAE, problem));
            }
        };
        result.map_err(|e| (section, format!("is wrong: {e}")))?;
        if channels != [3, 3] {
            let problem = format!(
                "maps {} channels to {}, but images have 3: red, green and blue",
                channels[0], channels[1]
            );
            return Err((section, problem));
        }
        Ok(())
    }
}

impl Stage2Config {
    /// The architecture of what turns captions, classes or masks into tensors; `None` for an unconditional model.
    pub fn conditioner(&self) -> Option<ConditionerConfig> {
        let text = || Some(ConditionerConfig::LdmBert(self.text.as_ref()?.bert.clone()));
        let class = || Some(ConditionerConfig::Class(self.class.as_ref()?.embedder()));
        let mask = || {
            Some(ConditionerConfig::Semantic(
                self.semantic.as_ref()?.rescaler(),
            ))
        };
        text().or_else(class).or_else(mask)
    }

    fn validate(&self, autoencoder: &FirstStageConfig) -> Result<(), (&'static str, String)> {
        self.training.validate("stage2.training")?;
        (self.unet.validate()).map_err(|e| ("stage2.unet", format!("is wrong: {e}")))?;
        let channels = [self.unet.in_channels, self.unet.out_channels];
        let of_latent = autoencoder.latent_channels();
        let of_mask = self.semantic.as_ref().map_or(0, |mask| mask.out_channels);
        if channels != [of_latent + of_mask, of_latent] {
            let problem = format!(
                "maps {} channels to {}, but the autoencoder's latents have {}{}",
                channels[0],
                channels[1],
                of_latent,
                match of_mask {
                    0 => String::new(),
                    n => format!(" and the semantic mask adds {n}"),
                }
            );
            return Err(("stage2.unet", problem));
        }
        if self.unet.has_classes() {
            return Err((
                "stage2.unet",
                "has `num_class_embeds` or `class_embed_type`: in training classes are attended to, see `stage2.class`".into(),
            ));
        }
        let scheduler = self.noise.scheduler(&self.loss);
        let schedule = scheduler
            .noise_schedule()
            .map_err(|e| ("stage2.noise", format!("is wrong: {e}")))?;
        (self.loss.init(schedule)).map_err(|e| ("stage2.loss", format!("is wrong: {e}")))?;
        let preview = &self.preview;
        (preview
            .sampler
            .build(&scheduler, preview.steps, preview.eta))
        .map_err(|e| ("stage2.preview", format!("is wrong: {e}")))?;
        if !preview.guidance.is_finite() {
            let problem = format!(
                "has `guidance` = {}: it must be a finite number",
                preview.guidance
            );
            return Err(("stage2.preview", problem));
        }
        if let Some(text) = &self.text {
            text.validate()?;
        }
        if let Some(class) = &self.class {
            class.validate()?;
        }
        self.validate_condition(autoencoder.factor())
    }

    /// Checks that there is one condition at most, and that the U-Net can read it; `factor` is the autoencoder's.
    fn validate_condition(&self, factor: usize) -> Result<(), (&'static str, String)> {
        let given = [
            ("stage2.text", self.text.is_some()),
            ("stage2.class", self.class.is_some()),
            ("stage2.semantic", self.semantic.is_some()),
        ];
        let mut given = given.into_iter().filter(|(_, given)| *given);
        if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
            return Err((
                second,
                format!("is given beside `{first}`: a model has one condition"),
            ));
        }
        if let Some(semantic) = &self.semantic {
            let halvings = 1usize.checked_shl(semantic.n_stages as u32);
            if halvings != Some(factor) {
                let problem = format!(
                    "has `n_stages` = {}, but the autoencoder's factor is {factor}: a mask is halved as often as a picture",
                    semantic.n_stages
                );
                return Err(("stage2.semantic", problem));
            }
        }
        let of_text = self
            .text
            .as_ref()
            .map(|text| ("stage2.text", text.bert.d_model));
        let of_class = self
            .class
            .as_ref()
            .map(|class| ("stage2.class", class.embed_dim));
        match (of_text.or(of_class), self.unet.cross_attention_dim) {
            (None, None) => Ok(()),
            (Some((_, context)), Some(width)) if context == width => Ok(()),
            (Some((section, context)), Some(width)) => Err((
                section,
                format!("gives a context of width {context}, but `stage2.unet.cross_attention_dim` is {width}"),
            )),
            (Some((section, _)), None) => Err((
                section,
                "is given, but the U-Net has no `cross_attention_dim` to read it by".into(),
            )),
            (None, Some(_)) => Err((
                "stage2.unet",
                "has a `cross_attention_dim`, but there is no `stage2.text` or `stage2.class` to attend to".into(),
            )),
        }
    }
}

impl ClassConfig {
    /// The embedding's architecture.
    pub fn embedder(&self) -> ClassEmbedderConfig {
        ClassEmbedderConfig {
            n_classes: self.n_classes,
            embed_dim: self.embed_dim,
            key: "class_label".into(),
        }
    }

    fn validate(&self) -> Result<(), (&'static str, String)> {
        if !(0.0..=1.0).contains(&self.dropout) {
            let problem = format!("has `dropout` = {}: it is a share, in [0, 1]", self.dropout);
            return Err(("stage2.class", problem));
        }
        if self.n_classes < 2 || self.embed_dim == 0 {
            let problem = format!(
                "has `n_classes` = {} and `embed_dim` = {}: there must be a class beside the last, which is none, and a width",
                self.n_classes, self.embed_dim
            );
            return Err(("stage2.class", problem));
        }
        Ok(())
    }
}

impl SemanticConfig {
    /// The architecture of what brings a mask to the latent's size.
    pub fn rescaler(&self) -> SpatialRescalerConfig {
        SpatialRescalerConfig {
            n_stages: self.n_stages,
            in_channels: self.in_channels,
            out_channels: Some(self.out_channels),
            bias: false,
        }
    }
}

impl TextConfig {
    fn validate(&self) -> Result<(), (&'static str, String)> {
        if !(0.0..=1.0).contains(&self.dropout) {
            let problem = format!("has `dropout` = {}: it is a share, in [0, 1]", self.dropout);
            return Err(("stage2.text", problem));
        }
        let bert = &self.bert;
        let least = [
            ("vocab_size", bert.vocab_size, BERT_TOKENS),
            (
                "max_position_embeddings",
                bert.max_position_embeddings,
                FRAME_TOKENS,
            ),
            ("encoder_attention_heads", bert.encoder_attention_heads, 1),
            ("head_dim", bert.head_dim, 1),
            ("encoder_ffn_dim", bert.encoder_ffn_dim, 1),
            ("d_model", bert.d_model, 1),
        ];
        match least.into_iter().find(|(_, value, least)| value < least) {
            Some((field, value, least)) => Err((
                "stage2.text.bert",
                format!("has `{field}` = {value}: it must be at least {least}"),
            )),
            None => Ok(()),
        }
    }
}

/// Size of the vocabulary that captions are read with.
const BERT_TOKENS: usize = 30_522;
/// The tokens at the beginning and the end of every caption.
const FRAME_TOKENS: usize = 2;

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn thousand() -> u64 {
    1000
}

fn tenth() -> f64 {
    0.1
}
