//! What the types of a configuration can't say.

use ldm_autoencoder::Lpips;
use ldm_diffusion::{DiffusionLossConfig, PredictionType, SamplerKind};

use super::{
    ClassConfig, FirstStageConfig, NoiseConfig, RunConfig, Stage1Config, Stage2Config, TextConfig,
    TrainingConfig, VAE, VQ,
};
use crate::data::Size;

/// The key of a mistake, and the problem.
type Mistake = (&'static str, String);

/// The key of codes brought back to life.
const REVIVE: &str = "stage1.revive_codes_after";

/// Size of the vocabulary that captions are read with.
const BERT_TOKENS: usize = 30_522;
/// The tokens at the beginning and the end of every caption.
const FRAME_TOKENS: usize = 2;

impl RunConfig {
    /// Finds the first mistake.
    pub(super) fn validate(&self) -> Result<(), Mistake> {
        if i64::try_from(self.seed).is_err() {
            return Err(("seed", format!("is {}: it must be below 2^63", self.seed)));
        }
        self.data.validate()?;
        self.stage1.training.validate("stage1.training")?;
        self.stage1.validate_autoencoder()?;
        (self.stage1.loss.validate()).map_err(|e| ("stage1.loss", format!("is wrong: {e}")))?;
        let autoencoder = self.stage1.autoencoder();
        self.validate_sizes(autoencoder.factor())?;
        match &self.stage2 {
            Some(stage2) => {
                stage2.validate(&autoencoder)?;
                self.validate_buckets(stage2, autoencoder.factor())
            }
            None => Ok(()),
        }
    }

    /// Checks that every network can work on images of these sizes; `factor` is the autoencoder's.
    fn validate_sizes(&self, factor: usize) -> Result<(), Mistake> {
        let fits = |side: u32| (side as usize).is_multiple_of(factor);
        for (key, size) in self.data.sizes() {
            if !(fits(size.width) && fits(size.height)) {
                let of = named(key, size);
                let problem =
                    format!("{of}, which the autoencoder's factor {factor} does not divide");
                return Err((key, problem));
            }
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
        for (key, size) in self.data.sizes() {
            let side = size.width.min(size.height) as usize;
            if let Some((least, part)) = needs.iter().find(|(least, _)| side < *least) {
                let problem = format!("{}, but {part} needs at least {least}", named(key, size));
                return Err((key, problem));
            }
        }
        Ok(())
    }

    /// Checks that the U-Net can work on latents of the buckets' sizes; `factor` is the autoencoder's.
    fn validate_buckets(&self, stage2: &Stage2Config, factor: usize) -> Result<(), Mistake> {
        let least = stage2.unet.smallest_side() * factor;
        let small = |size: &&Size| (size.width.min(size.height) as usize) < least;
        match self.data.buckets.iter().find(small) {
            Some(size) => Err((
                "data.buckets",
                format!("has {size}, but the U-Net of stage 2 needs at least {least}"),
            )),
            None => Ok(()),
        }
    }
}

/// A size as the key says it, to be read after the key.
fn named(key: &str, size: Size) -> String {
    match key {
        "data.resolution" => format!("is {}", size.width),
        _ => format!("has {size}"),
    }
}

impl TrainingConfig {
    fn validate(&self, section: &'static str) -> Result<(), Mistake> {
        let counts = [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("accumulation", self.accumulation as u64),
            ("checkpoint_every", self.checkpoint_every),
            ("keep_checkpoints", self.keep_checkpoints as u64),
            ("sample_every", self.sample_every),
            ("keep_every", self.keep_every.unwrap_or(1)),
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
        let factor = self.non_finite.rate_factor;
        if !(factor > 0.0 && factor < 1.0) {
            return Err((
                section,
                format!("has `non_finite.rate_factor` = {factor}: it must lie between 0 and 1"),
            ));
        }
        let warmup = &self.ema_warmup;
        let above_0 = |value: f64| value > 0.0 && value.is_finite();
        if !(above_0(warmup.inv_gamma) && above_0(warmup.power)) {
            let problem = format!(
                "has `ema_warmup.inv_gamma` = {} and `ema_warmup.power` = {}: both must be above 0",
                warmup.inv_gamma, warmup.power
            );
            return Err((section, problem));
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
    /// Checks that there is one autoencoder, and that it is one for images.
    fn validate_autoencoder(&self) -> Result<(), Mistake> {
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
        match self.revive_codes_after {
            Some(0) => Err((
                REVIVE,
                "is 0: a code must have had a step to be used in; leave it out to revive none"
                    .into(),
            )),
            Some(_) if self.vq.is_none() => {
                let problem =
                    format!("is given, but only an autoencoder of `{VQ}` has codes to revive");
                Err((REVIVE, problem))
            }
            _ => Ok(()),
        }
    }
}

impl NoiseConfig {
    fn validate(&self, loss: &DiffusionLossConfig, sampler: SamplerKind) -> Result<(), Mistake> {
        for (key, value) in [
            ("stage2.noise.offset_noise", self.offset_noise),
            ("stage2.noise.input_perturbation", self.input_perturbation),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err((key, format!("is {value}: it must be 0 or more")));
            }
        }
        if !self.rescale_zero_terminal_snr {
            return Ok(());
        }
        if loss.prediction_type == PredictionType::Epsilon {
            return Err((
                "stage2.noise.rescale_zero_terminal_snr",
                "leaves no signal at the last step, where a noise prediction says nothing about the image: set \
                 `stage2.loss.prediction_type` to \"v_prediction\" or \"sample\""
                    .into(),
            ));
        }
        if !sampler.knows_zero_snr() {
            return Err((
                "stage2.preview.sampler",
                "doesn't know of schedules without signal at the end (`stage2.noise.rescale_zero_terminal_snr`): use \"ddim\""
                    .into(),
            ));
        }
        Ok(())
    }
}

impl Stage2Config {
    fn validate(&self, autoencoder: &FirstStageConfig) -> Result<(), Mistake> {
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
        self.noise.validate(&self.loss, self.preview.sampler)?;
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
    fn validate_condition(&self, factor: usize) -> Result<(), Mistake> {
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
            let labels = semantic.in_channels;
            if let Some((value, label)) =
                (semantic.mapping.iter()).find(|(_, label)| *label as usize >= labels)
            {
                let problem = format!(
                    "has a `mapping` of {value} to {label}, but `in_channels` counts {labels} labels, from 0"
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
    fn validate(&self) -> Result<(), Mistake> {
        validate_dropout("stage2.class", self.dropout)?;
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

impl TextConfig {
    fn validate(&self) -> Result<(), Mistake> {
        validate_dropout("stage2.text", self.dropout)?;
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

fn validate_dropout(section: &'static str, dropout: f64) -> Result<(), Mistake> {
    match (0.0..=1.0).contains(&dropout) {
        true => Ok(()),
        false => Err((
            section,
            format!("has `dropout` = {dropout}: it is a share, in [0, 1]"),
        )),
    }
}
