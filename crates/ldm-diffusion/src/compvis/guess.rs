use std::collections::BTreeMap;

use super::{CompVisUNet, factor, invalid};
use crate::Error;

/// Heads of a published model, which its tensors don't show.
#[derive(Clone, Copy)]
enum Heads {
    /// `num_heads`.
    Number(usize),
    /// `num_head_channels`.
    Width(usize),
}

/// Published models: `model_channels`, `channel_mult`, `context_dim` and heads.
const PUBLISHED: &[(usize, &[usize], Option<usize>, Heads)] = &[
    // CelebA-HQ, FFHQ, LSUN-Bedrooms
    (224, &[1, 2, 3, 4], None, Heads::Width(32)),
    // LSUN-Churches
    (192, &[1, 2, 2, 4, 4], None, Heads::Number(8)),
    // ImageNet over the f8 autoencoder
    (256, &[1, 2, 4], Some(512), Heads::Width(32)),
    // ImageNet over the f4 autoencoder
    (192, &[1, 2, 3, 5], Some(512), Heads::Number(1)),
    // semantic synthesis
    (128, &[1, 4, 8], None, Heads::Number(8)),
    // layout to image
    (128, &[1, 2, 3, 4], Some(512), Heads::Width(32)),
    // inpainting
    (256, &[1, 2, 3, 4], None, Heads::Number(8)),
    // super-resolution
    (160, &[1, 2, 2, 4], None, Heads::Width(32)),
    // text to image: f4, f8, and f8 with CLIP
    (192, &[1, 2, 3, 5], Some(640), Heads::Width(32)),
    (320, &[1, 2, 4, 4], Some(1280), Heads::Number(8)),
    (320, &[1, 2, 4, 4], Some(768), Heads::Number(8)),
    // retrieval-augmented
    (448, &[1, 2, 3, 4], Some(768), Heads::Width(32)),
];

impl CompVisUNet {
    /// The configuration of a checkpoint without one, from the names (without `model.diffusion_model.`) and shapes of its
    /// tensors; other tensors may be among them.
    ///
    /// Shapes don't tell the heads of the attention: they are those of the published model of the same widths.
    ///
    /// # Errors
    /// If a tensor is missing or of a shape that doesn't fit, or no published model has these widths.
    pub fn guess(shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self, Error> {
        let shapes = Shapes(shapes);
        let model_channels = shapes.axis("input_blocks.0.0.weight", 0)?;
        let (num_res_blocks, levels) = shapes.layout()?;
        // The first ResNet block of a level.
        let first = |level: usize| format!("input_blocks.{}", 1 + level * (num_res_blocks + 1));
        let mut channel_mult = Vec::new();
        let mut attention_resolutions = Vec::new();
        for level in 0..levels {
            let key = format!("{}.0.out_layers.3.weight", first(level));
            let channels = shapes.axis(&key, 0)?;
            if model_channels == 0 || !channels.is_multiple_of(model_channels) {
                return Err(invalid(
                    &key,
                    format!("has {channels} channels, no multiple of {model_channels}"),
                ));
            }
            channel_mult.push(channels / model_channels);
            if shapes.has(&format!("{}.1.norm.weight", first(level))) {
                attention_resolutions.extend(factor(level));
            }
        }
        let attn2 =
            |layer: usize| format!("middle_block.1.transformer_blocks.{layer}.attn2.to_k.weight");
        let depth = (0..).take_while(|layer| shapes.has(&attn2(*layer))).count();
        let scale_shift = shapes.axis("middle_block.0.emb_layers.1.weight", 0)?
            == 2 * shapes.axis("middle_block.0.out_layers.0.weight", 0)?;
        let mut guess = Self {
            use_spatial_transformer: depth > 0,
            transformer_depth: depth.max(1),
            context_dim: (depth > 0).then(|| shapes.axis(&attn2(0), 1)).transpose()?,
            use_scale_shift_norm: scale_shift,
            resblock_updown: levels > 1
                && !shapes.has(&format!("input_blocks.{}.0.op.weight", 1 + num_res_blocks)),
            num_classes: (shapes.has("label_emb.weight"))
                .then(|| shapes.axis("label_emb.weight", 0))
                .transpose()?,
            ..Self::new(
                shapes.axis("input_blocks.0.0.weight", 1)?,
                shapes.axis("out.2.weight", 0)?,
                model_channels,
                num_res_blocks,
                channel_mult,
                attention_resolutions,
            )
        };
        let published = PUBLISHED
            .iter()
            .find(|(channels, factors, context_dim, _)| {
                (*channels, *factors, *context_dim)
                    == (
                        guess.model_channels,
                        guess.channel_mult.as_slice(),
                        guess.context_dim,
                    )
            });
        match published {
            Some((.., Heads::Number(heads))) => guess.num_heads = Some(*heads),
            Some((.., Heads::Width(width))) => guess.num_head_channels = Some(*width),
            None => {
                return Err(invalid(
                    "num_heads",
                    "can't be told from the tensors, and no published model has these widths: pass the checkpoint's yaml file",
                ));
            }
        }
        Ok(guess)
    }
}

struct Shapes<'a>(&'a BTreeMap<String, Vec<usize>>);

impl Shapes<'_> {
    fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn axis(&self, key: &str, axis: usize) -> Result<usize, Error> {
        let shape = self
            .0
            .get(key)
            .ok_or_else(|| invalid(key, "is missing among the checkpoint's tensors"))?;
        (shape.get(axis).copied())
            .ok_or_else(|| invalid(key, format!("has shape {shape:?}, which is too short")))
    }

    /// ResNet blocks per level on the way down, and number of levels.
    ///
    /// A level on the way up has one block more, and all but the last end with an up-sampler.
    fn layout(&self) -> Result<(usize, usize), Error> {
        let blocks = (0..)
            .take_while(|index| self.has(&format!("output_blocks.{index}.0.in_layers.0.weight")))
            .count();
        let upsamples = |index: usize| {
            [1, 2].iter().any(|place| {
                ["conv.weight", "in_layers.0.weight"]
                    .iter()
                    .any(|layer| self.has(&format!("output_blocks.{index}.{place}.{layer}")))
            })
        };
        let upsamplers: Vec<usize> = (0..blocks).filter(|index| upsamples(*index)).collect();
        let per_level = upsamplers.first().map_or(blocks, |first| first + 1);
        let levels = upsamplers.len() + 1;
        if per_level < 2 || per_level * levels != blocks {
            return Err(invalid(
                "output_blocks",
                format!("has {blocks} blocks, {levels} levels: not a U-Net of the known form"),
            ));
        }
        Ok((per_level - 1, levels))
    }
}
