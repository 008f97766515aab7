//! How the conditions of a request reach the U-Net: as a context to attend to, as channels beside the latents, or as classes.

use burn::{
    prelude::*,
    tensor::{Int, TensorData},
};
use ldm_diffusion::{Guidance, UNet, conditioning::SpatialRescalerConfig, unet::ClassEmbedType};

use super::{LabelMap, Request, source::EncodedSource};
use crate::{
    error::Error,
    model::{Conditioner, ConditionerConfig, LatentDiffusion},
};

/// What one image is to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Whatever the model draws by itself.
    #[default]
    Nothing,
    /// What a text says.
    Prompt(String),
    /// A class, counted from 0.
    Class(usize),
    /// A scene by the label of each pixel.
    Labels(LabelMap),
}

/// The U-Net with everything that it sees beside latents and timestep.
pub(super) struct Network<'a> {
    unet: &'a UNet,
    guidance: Option<Guidance>,
    /// `[N, K, h, w]`, in the order in which they follow the latents.
    channels: Vec<Tensor<4>>,
    /// `[N]`
    classes: Option<Tensor<1, Int>>,
}

impl Network<'_> {
    /// The (guided) prediction for latents `[N, c, h, w]`.
    pub(super) fn predict(&self, x: Tensor<4>, timestep: f64) -> Tensor<4> {
        match &self.guidance {
            Some(guidance) => {
                guidance.predict(x, |x, context| self.call(x, timestep, Some(context)))
            }
            None => self.call(x, timestep, None),
        }
    }

    fn call(&self, x: Tensor<4>, timestep: f64, context: Option<Tensor<3>>) -> Tensor<4> {
        let n = x.dims()[0];
        let timesteps = Tensor::<1>::full([n], timestep, &x.device());
        let mut parts = vec![x];
        for channels in &self.channels {
            // Guidance sends every item through twice.
            let copies = n / channels.dims()[0];
            parts.push(channels.clone().repeat_dim(0, copies));
        }
        let classes = (self.classes.as_ref()).map(|classes| {
            let copies = n / classes.dims()[0];
            classes.clone().repeat_dim(0, copies)
        });
        let input = if parts.len() == 1 {
            parts.remove(0)
        } else {
            Tensor::cat(parts, 1)
        };
        (self.unet).forward_with_class(input, timesteps, context, classes)
    }
}

impl LatentDiffusion {
    /// The network under the conditions of a batch.
    pub(super) fn network(
        &self,
        request: &Request,
        conditions: &[Condition],
        source: Option<&EncodedSource>,
    ) -> Network<'_> {
        let device = self.device();
        let mut network = Network {
            unet: &self.denoiser.unet,
            guidance: None,
            channels: Vec::new(),
            classes: None,
        };
        let guide = |unconditional: Tensor<3>, conditional| {
            let unconditional = unconditional.repeat_dim(0, conditions.len());
            Guidance::new(unconditional, conditional, request.guidance)
                .with_rescale(request.guidance_rescale)
        };
        match &self.denoiser.conditioner {
            Some(Conditioner::Class(embedder)) => {
                let Some(ConditionerConfig::Class(config)) = &self.configs.conditioner else {
                    unreachable!("a conditioner is made from its configuration")
                };
                let ids = classes(conditions, &device);
                let unconditional = class_tensor(&[config.unconditional_class()], &device);
                network.guidance = Some(guide(
                    embedder.forward(unconditional),
                    embedder.forward(ids),
                ));
            }
            Some(Conditioner::Semantic(rescaler)) => {
                let maps: Vec<&LabelMap> = conditions
                    .iter()
                    .filter_map(|condition| match condition {
                        Condition::Labels(map) => Some(map),
                        _ => None,
                    })
                    .collect();
                let labels = LabelMap::batch(&maps, &device);
                network.channels.push(rescaler.forward_labels(labels));
            }
            Some(text @ (Conditioner::LdmBert(_) | Conditioner::Bert(_))) => {
                let prompts: Vec<&str> = conditions
                    .iter()
                    .map(|condition| match condition {
                        Condition::Prompt(prompt) => prompt.as_str(),
                        _ => "",
                    })
                    .collect();
                if let Some((tokenizer, length)) = self.tokenizer.as_ref().zip(self.text_length()) {
                    let masked = self.configs.facts.text_mask;
                    let encode = |texts: &[&str]| {
                        text.encode_text(tokenizer, texts, length, masked, &device)
                    };
                    network.guidance = Some(guide(
                        encode(&[request.negative.as_str()]),
                        encode(&prompts),
                    ));
                }
            }
            None => {}
        }
        if self.configs.unet.has_classes() {
            network.classes = Some(classes(conditions, &device));
        }
        if let Some(source) = source.filter(|_| self.takes_masked_image()) {
            network.channels.extend(source.concatenated(self));
        }
        network
    }

    /// Tokens that this model reads of a text.
    pub(crate) fn text_length(&self) -> Option<usize> {
        (self.configs.conditioner.as_ref()).and_then(ConditionerConfig::text_length)
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
    pub(super) fn check_conditions(&self, request: &Request) -> Result<(), Error> {
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
            match (conditioner, condition) {
                (Some(config), Condition::Prompt(prompt)) if config.is_text() => {
                    self.check_tokens(prompt)?;
                }
                (Some(config), _) if config.is_text() => {
                    return refuse("this model draws what a prompt says: give one".into());
                }
                (Some(ConditionerConfig::Semantic(config)), Condition::Labels(map)) => {
                    self.check_labels(request, config, map)?;
                }
                (Some(ConditionerConfig::Semantic(_)), _) => {
                    return refuse(
                        "this model draws a scene by its semantic mask: give one with --semantic"
                            .into(),
                    );
                }
                (_, Condition::Class(class)) if num_classes.is_some() => {
                    let count = num_classes.unwrap_or_default();
                    if *class >= count {
                        return refuse(format!(
                            "there is no class {class}: the model knows 0 to {}",
                            count - 1
                        ));
                    }
                }
                _ if num_classes.is_some() => {
                    return refuse("this model draws a class: give one with --class".into());
                }
                (_, Condition::Nothing) => {}
                (_, Condition::Prompt(prompt)) if prompt.is_empty() => {}
                (_, Condition::Prompt(_)) => {
                    return refuse("this model takes no prompt".into());
                }
                (_, Condition::Class(_)) => {
                    return refuse("this model knows no classes".into());
                }
                (_, Condition::Labels(_)) => {
                    return refuse("this model takes no semantic mask".into());
                }
            }
        }
        Ok(())
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
            return refuse("the semantic masks differ in size".into());
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

fn classes(conditions: &[Condition], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<usize> = conditions
        .iter()
        .map(|condition| match condition {
            Condition::Class(class) => *class,
            _ => 0,
        })
        .collect();
    class_tensor(&ids, device)
}

/// Numbers of classes, `[N]`.
pub(crate) fn class_tensor(ids: &[usize], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let shape = [ids.len()];
    Tensor::from_data(TensorData::new(ids, shape), device)
}
