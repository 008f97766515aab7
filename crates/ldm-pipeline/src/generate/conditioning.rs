//! How the conditions of a request reach the U-Net: as a context to attend to, as channels beside the latents, or as classes.

use burn::{
    prelude::*,
    tensor::{Int, TensorData},
};
use ldm_diffusion::{Guidance, UNet};

use super::{Condition, LabelMap, Request, source::EncodedSource};
use crate::model::{Conditioner, ConditionerConfig, LatentDiffusion};

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
                let unconditional = class_tensor(&[config.unconditional_class()], &device);
                let context = mixed(conditions, |conditions| {
                    embedder.forward(classes(conditions, &device))
                });
                network.guidance = Some(guide(embedder.forward(unconditional), context));
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
                if let Some((tokenizer, length)) = self.tokenizer.as_ref().zip(self.text_length()) {
                    let masked = self.configs.facts.text_mask;
                    let encode = |texts: &[&str]| {
                        text.encode_text(tokenizer, texts, length, masked, &device)
                    };
                    let context = mixed(conditions, |conditions| encode(&prompts(conditions)));
                    network.guidance = Some(guide(encode(&[request.negative.as_str()]), context));
                }
            }
            None => {}
        }
        if self.configs.unet.has_classes() {
            let conditions: Vec<&Condition> = conditions.iter().collect();
            network.classes = Some(classes(&conditions, &device));
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
}

/// The contexts `[N, S, D]` of conditions, where `encode` makes those of plain ones. Between two they are mixed linearly.
fn mixed(conditions: &[Condition], encode: impl Fn(&[&Condition]) -> Tensor<3>) -> Tensor<3> {
    let ends = |end: fn(&Condition) -> &Condition| -> Vec<&Condition> {
        conditions.iter().map(end).collect()
    };
    let from = encode(&ends(Condition::from));
    let shares: Vec<f32> = (conditions.iter())
        .map(|condition| condition.share() as f32)
        .collect();
    if shares.iter().all(|&share| share == 0.0) {
        return from;
    }
    let to = encode(&ends(Condition::to));
    let shape = [shares.len(), 1, 1];
    let share = Tensor::<3>::from_data(TensorData::new(shares, shape), &from.device());
    // Each end comes out as it is.
    from * share.clone().neg().add_scalar(1.0) + to * share
}

fn prompts<'a>(conditions: &[&'a Condition]) -> Vec<&'a str> {
    conditions
        .iter()
        .map(|condition| match condition {
            Condition::Prompt(prompt) => prompt.as_str(),
            _ => "",
        })
        .collect()
}

fn classes(conditions: &[&Condition], device: &Device) -> Tensor<1, Int> {
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
