//! Whether a request fits a model, found out before anything is drawn.

use ldm_diffusion::{conditioning::SpatialRescalerConfig, unet::ClassEmbedType};

use super::{Blend, Condition, LabelMap, Request};
use crate::{
    error::Error,
    model::{ConditionerConfig, LatentDiffusion},
};

impl LatentDiffusion {
    /// Finds out whether a request fits the model, before anything is drawn.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate).
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::Request(problem));
        self.check_conditions(request)?;
        for (name, value) in [
            ("guidance", request.guidance),
            ("guidance rescale", request.guidance_rescale),
        ] {
            if !value.is_finite() {
                return refuse(format!("the {name} is {value}: it must be a finite number"));
            }
        }
        let sampler =
            (request.sampler).build(&self.configs.scheduler, request.steps, request.eta)?;
        let size = self.pixel_size(request)?;
        let factor = self.configs.first_stage.factor();
        if size.iter().any(|&side| side == 0 || side % factor != 0) {
            return refuse(format!(
                "{} x {} pixels don't fit the autoencoder: both sides must be multiples of {factor}",
                size[1], size[0]
            ));
        }
        let [height, width] = self.latent_size(request)?;
        let least = self.configs.unet.smallest_side();
        if height.min(width) < least {
            return refuse(format!(
                "{} x {} pixels are too small: the U-Net needs latents of {least} x {least}, which are {} x {} pixels",
                size[1],
                size[0],
                least * factor,
                least * factor
            ));
        }
        if !request.noise.is_empty() && request.noise.len() != request.conditions.len() {
            return refuse(format!(
                "there is noise for {} images, but {} are to be drawn",
                request.noise.len(),
                request.conditions.len()
            ));
        }
        if let Some(latents) = &request.init_latents {
            let expected = [
                request.conditions.len(),
                self.configs.first_stage.latent_channels(),
                height,
                width,
            ];
            if latents.dims() != expected {
                return refuse(format!(
                    "the initial latents have shape {:?}, but {expected:?} are needed",
                    latents.dims()
                ));
            }
        }
        match &request.source {
            Some(source) => source.check(self, size, sampler.as_ref()),
            None if self.takes_masked_image() => {
                refuse("this model fills a region of a picture: give an image and a mask".into())
            }
            None => Ok(()),
        }
    }

    /// Largest number of [`Drawn::frames`](super::Drawn::frames).
    ///
    /// # Errors
    /// If the sampler can't be built.
    pub fn frame_count(&self, request: &Request) -> Result<usize, Error> {
        let Some(every) = request.frames_every else {
            return Ok(0);
        };
        let sampler =
            (request.sampler).build(&self.configs.scheduler, request.steps, request.eta)?;
        Ok(sampler.timesteps().len().div_ceil(every.max(1)))
    }

    /// Height and width of the latents.
    pub(super) fn latent_size(&self, request: &Request) -> Result<[usize; 2], Error> {
        let factor = self.configs.first_stage.factor();
        Ok(self.pixel_size(request)?.map(|side| side / factor))
    }

    /// Height and width of the images of a request.
    ///
    /// # Errors
    /// If neither the request nor the model says them.
    pub fn pixel_size(&self, request: &Request) -> Result<[usize; 2], Error> {
        let factor = self.configs.first_stage.factor();
        let of_latents = || {
            let [_, _, height, width] = request.init_latents.as_ref()?.dims();
            Some([height * factor, width * factor])
        };
        let of_source = || Some(request.source.as_ref()?.size());
        let of_mask = || match request.conditions.first()? {
            Condition::Labels(map) => Some([map.height, map.width]),
            _ => None,
        };
        (request.size)
            .or_else(of_latents)
            .or_else(of_source)
            .or_else(of_mask)
            .or_else(|| self.native_size().map(|side| [side, side]))
            .ok_or_else(|| {
                Error::Request("the model doesn't say its size: give --width and --height".into())
            })
    }

    /// Whether the text encoder knows every token of a text: its embedding may have fewer rows than the vocabulary.
    fn check_tokens(&self, text: &str) -> Result<(), Error> {
        let known = (self.configs.conditioner.as_ref()).and_then(ConditionerConfig::vocab_size);
        let Some(((tokenizer, length), known)) =
            self.tokenizer.as_ref().zip(self.text_length()).zip(known)
        else {
            return Ok(());
        };
        let ids = tokenizer.encode(text, length);
        match ids.into_iter().find(|&id| id as usize >= known) {
            Some(id) => Err(Error::Request(format!(
                "\"{text}\" has the token {id}, but the text encoder knows only the first {known}"
            ))),
            None => Ok(()),
        }
    }

    /// Whether the conditions of a request are of the kind that the model takes.
    fn check_conditions(&self, request: &Request) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::Request(problem));
        let conditioner = self.configs.conditioner.as_ref();
        if !request.negative.is_empty() && !conditioner.is_some_and(ConditionerConfig::is_text) {
            return refuse("this model takes no negative prompt".into());
        }
        let num_classes = match conditioner {
            Some(ConditionerConfig::Class(config)) => Some(config.n_classes),
            _ => match self.configs.unet.class_embed_type {
                Some(ClassEmbedType::Identity) => {
                    return refuse("this model takes the embedding of a class, which only the library can give".into());
                }
                // Any number will do.
                Some(ClassEmbedType::Timestep) => Some(usize::MAX),
                None => self.configs.unet.num_class_embeds,
            },
        };
        self.check_tokens(&request.negative)?;
        for condition in &request.conditions {
            match condition {
                Condition::Between(blend) => {
                    check_blend(blend)?;
                    self.check_condition(request, num_classes, &blend.from)?;
                    self.check_condition(request, num_classes, &blend.to)?;
                    if conditioner.is_none() || self.configs.unet.has_classes() {
                        return refuse(
                            "this model's classes aren't contexts, which could be mixed".into(),
                        );
                    }
                }
                plain => self.check_condition(request, num_classes, plain)?,
            }
        }
        Ok(())
    }

    /// The same of one condition, with nothing mixed. `num_classes` is of a model that knows classes.
    fn check_condition(
        &self,
        request: &Request,
        num_classes: Option<usize>,
        condition: &Condition,
    ) -> Result<(), Error> {
        let refuse = |problem: &str| Err(Error::Request(problem.into()));
        match (self.configs.conditioner.as_ref(), condition) {
            (Some(config), Condition::Prompt(prompt)) if config.is_text() => {
                self.check_tokens(prompt)
            }
            (Some(config), _) if config.is_text() => {
                refuse("this model draws what a prompt says: give one")
            }
            (Some(ConditionerConfig::Semantic(config)), Condition::Labels(map)) => {
                self.check_labels(request, config, map)
            }
            (Some(ConditionerConfig::Semantic(_)), _) => {
                refuse("this model draws a scene by its semantic mask: give one with --semantic")
            }
            (_, Condition::Class(class)) if num_classes.is_some() => {
                let count = num_classes.unwrap_or_default();
                if *class >= count {
                    return Err(Error::Request(format!(
                        "there is no class {class}: the model knows 0 to {}",
                        count - 1
                    )));
                }
                Ok(())
            }
            _ if num_classes.is_some() => refuse("this model draws a class: give one with --class"),
            (_, Condition::Nothing) => Ok(()),
            (_, Condition::Prompt(prompt)) if prompt.is_empty() => Ok(()),
            (_, Condition::Prompt(_)) => refuse("this model takes no prompt"),
            (_, Condition::Class(_)) => refuse("this model knows no classes"),
            (_, Condition::Labels(_)) => refuse("this model takes no semantic mask"),
            (_, Condition::Between(_)) => refuse("this model takes nothing that could be mixed"),
        }
    }

    /// Whether a semantic mask has the model's labels, and the size of the picture and of the other masks.
    fn check_labels(
        &self,
        request: &Request,
        config: &SpatialRescalerConfig,
        map: &LabelMap,
    ) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::Request(problem));
        let largest = map.labels.iter().max().copied().unwrap_or(0) as usize;
        if largest >= config.in_channels {
            return refuse(format!(
                "the semantic mask has the label {largest}, but the model knows 0 to {}",
                config.in_channels - 1
            ));
        }
        if let Some(Condition::Labels(first)) = request.conditions.first()
            && [first.width, first.height] != [map.width, map.height]
        {
            return refuse(format!(
                "the semantic masks differ in size, {} x {} and {} x {} pixels: those of one size are drawn together",
                first.width, first.height, map.width, map.height
            ));
        }
        let latent = self.latent_size(request)?;
        let rescaled = [map.height, map.width].map(|side| side >> config.n_stages);
        if rescaled != latent {
            return refuse(format!(
                "a semantic mask of {} x {} pixels becomes {} x {}, but the latents have {} x {}: \
                 make it as large as the picture",
                map.width, map.height, rescaled[1], rescaled[0], latent[1], latent[0]
            ));
        }
        Ok(())
    }
}

/// Whether two conditions can be mixed, whatever the model.
fn check_blend(blend: &Blend) -> Result<(), Error> {
    use Condition::{Class, Prompt};
    if !matches!(
        (&blend.from, &blend.to),
        (Prompt(_), Prompt(_)) | (Class(_), Class(_))
    ) {
        return Err(Error::Request(
            "only two prompts or two classes can be mixed".into(),
        ));
    }
    if !(0.0..=1.0).contains(&blend.share) {
        return Err(Error::Request(format!(
            "a share of {} can't be mixed in: it lies between 0 and 1",
            blend.share
        )));
    }
    Ok(())
}
