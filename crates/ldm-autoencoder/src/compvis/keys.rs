use ldm_nn::weights::{KeyPair, Layout};

use crate::{
    AutoencoderKlConfig, DownBlockType, UpBlockType, VqModelConfig, architecture::Architecture,
};

impl AutoencoderKlConfig {
    /// Every tensor of the model, and what it is called in a checkpoint of the original code.
    pub fn compvis_keys(&self) -> Vec<KeyPair> {
        let mut keys = Keys::default();
        keys.encoder_and_decoder(&self.architecture());
        if self.use_quant_conv {
            keys.layer("quant_conv", "quant_conv");
        }
        if self.use_post_quant_conv {
            keys.layer("post_quant_conv", "post_quant_conv");
        }
        keys.0
    }
}

impl VqModelConfig {
    /// Every tensor of the model, and what it is called in a checkpoint of the original code.
    pub fn compvis_keys(&self) -> Vec<KeyPair> {
        let mut keys = Keys::default();
        keys.encoder_and_decoder(&self.architecture());
        keys.layer("quant_conv", "quant_conv");
        keys.layer("post_quant_conv", "post_quant_conv");
        let codes = "quantize.embedding.weight";
        keys.0.push(KeyPair::same(codes, codes));
        keys.0
    }
}

/// Names of layers are those of the module and, after it, those of the original code.
#[derive(Default)]
struct Keys(Vec<KeyPair>);

impl Keys {
    fn encoder_and_decoder(&mut self, config: &Architecture) {
        let widths = config.block_out_channels;
        let last = widths.len() - 1;

        for level in 0..=last {
            let ours = format!("encoder.down_blocks.{level}");
            let theirs = format!("encoder.down.{level}");
            let attends = config.down_block_types[level] == DownBlockType::AttnDown;
            let shortcut = level > 0 && widths[level] != widths[level - 1];
            self.level(&ours, &theirs, config.layers_per_block, attends, shortcut);
            if level < last {
                self.layer(
                    &format!("{ours}.downsamplers.0.conv"),
                    &format!("{theirs}.downsample.conv"),
                );
            }
        }
        // The original code counts the decoder's levels as the encoder's, from full resolution downwards.
        for level in 0..=last {
            let ours = format!("decoder.up_blocks.{}", last - level);
            let theirs = format!("decoder.up.{level}");
            let attends = config.up_block_types[last - level] == UpBlockType::AttnUp;
            let shortcut = level < last && widths[level] != widths[level + 1];
            self.level(
                &ours,
                &theirs,
                config.layers_per_block + 1,
                attends,
                shortcut,
            );
            if level > 0 {
                self.layer(
                    &format!("{ours}.upsamplers.0.conv"),
                    &format!("{theirs}.upsample.conv"),
                );
            }
        }
        for part in ["encoder", "decoder"] {
            let (ours, theirs) = (format!("{part}.mid_block"), format!("{part}.mid"));
            for block in [0, 1] {
                self.resnet(
                    &format!("{ours}.resnets.{block}"),
                    &format!("{theirs}.block_{}", block + 1),
                    false,
                );
            }
            if config.mid_block_add_attention {
                self.attention(&format!("{ours}.attentions.0"), &format!("{theirs}.attn_1"));
            }
            for (ours, theirs) in [
                ("conv_in", "conv_in"),
                ("conv_norm_out", "norm_out"),
                ("conv_out", "conv_out"),
            ] {
                self.layer(&format!("{part}.{ours}"), &format!("{part}.{theirs}"));
            }
        }
    }

    /// ResNet blocks, each with its attention where the level has any; the first has a shortcut where the width changes.
    fn level(&mut self, ours: &str, theirs: &str, layers: usize, attends: bool, shortcut: bool) {
        for layer in 0..layers {
            self.resnet(
                &format!("{ours}.resnets.{layer}"),
                &format!("{theirs}.block.{layer}"),
                shortcut && layer == 0,
            );
            if attends {
                self.attention(
                    &format!("{ours}.attentions.{layer}"),
                    &format!("{theirs}.attn.{layer}"),
                );
            }
        }
    }

    fn resnet(&mut self, ours: &str, theirs: &str, shortcut: bool) {
        for layer in ["norm1", "conv1", "norm2", "conv2"] {
            self.layer(&format!("{ours}.{layer}"), &format!("{theirs}.{layer}"));
        }
        if shortcut {
            self.layer(
                &format!("{ours}.conv_shortcut"),
                &format!("{theirs}.nin_shortcut"),
            );
        }
    }

    /// The original code's projections are 1x1 convolutions.
    fn attention(&mut self, ours: &str, theirs: &str) {
        self.layer(&format!("{ours}.group_norm"), &format!("{theirs}.norm"));
        for (layer, projection) in [
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ] {
            let (ours, theirs) = (format!("{ours}.{layer}"), format!("{theirs}.{projection}"));
            self.0.push(KeyPair {
                layout: Layout::Pointwise { axes: 2 },
                ..KeyPair::same(format!("{ours}.weight"), format!("{theirs}.weight"))
            });
            self.0.push(KeyPair::same(
                format!("{ours}.bias"),
                format!("{theirs}.bias"),
            ));
        }
    }

    /// Weight and bias of a layer that is stored in the same way by both.
    fn layer(&mut self, ours: &str, theirs: &str) {
        for tensor in ["weight", "bias"] {
            self.0.push(KeyPair::same(
                format!("{ours}.{tensor}"),
                format!("{theirs}.{tensor}"),
            ));
        }
    }
}
