use super::{CompVisUNet, factor, invalid};
use crate::{
    Error,
    unet::{
        DownBlockType, MidBlockType, PerLevel, ResampleType, SampleSize, TimeScaleShift, UNetClass,
        UNetConfig, UpBlockType,
    },
};

/// Groups of every norm in CompVis' code.
const GROUPS: usize = 32;

impl CompVisUNet {
    /// The same network in diffusers' terms.
    ///
    /// The same number of heads at levels of several widths becomes a list of widths, see
    /// [`UNetConfig::attention_head_dim`].
    ///
    /// # Errors
    /// Names the first field whose value CompVis' code refuses too, or that this crate has no code for.
    pub fn to_config(&self) -> Result<UNetConfig, Error> {
        self.check()?;
        let levels = self.channel_mult.len();
        let channels: Vec<usize> = (self.channel_mult.iter())
            .map(|multiple| multiple.saturating_mul(self.model_channels))
            .collect();
        let attends: Vec<bool> = (0..levels)
            .map(|level| factor(level).is_some_and(|f| self.attention_resolutions.contains(&f)))
            .collect();
        let plain = if self.resblock_updown {
            (
                DownBlockType::ResnetDownsampleBlock2D,
                UpBlockType::ResnetUpsampleBlock2D,
            )
        } else {
            (DownBlockType::DownBlock2D, UpBlockType::UpBlock2D)
        };
        let attending = if self.use_spatial_transformer {
            (
                DownBlockType::CrossAttnDownBlock2D,
                UpBlockType::CrossAttnUpBlock2D,
            )
        } else {
            (DownBlockType::AttnDownBlock2D, UpBlockType::AttnUpBlock2D)
        };
        let block = |level: usize| if attends[level] { attending } else { plain };
        let resampling = if self.resblock_updown {
            ResampleType::Resnet
        } else {
            ResampleType::Conv
        };
        let down_block_types = (0..levels).map(|level| block(level).0).collect();
        let up_block_types = (0..levels).rev().map(|level| block(level).1).collect();
        let head_dim = self.head_dim(&channels, &attends)?;
        let base = if self.use_spatial_transformer {
            let Some(context_dim) = self.context_dim else {
                let problem = "is missing: the transformers need the width of their context";
                return Err(invalid("context_dim", problem));
            };
            UNetConfig::conditional(
                self.out_channels,
                context_dim,
                channels,
                down_block_types,
                up_block_types,
            )
        } else {
            UNetConfig::unconditional(
                self.out_channels,
                channels,
                down_block_types,
                up_block_types,
            )
        };
        let scale_shift = self.use_scale_shift_norm;
        let config = UNetConfig {
            sample_size: self.image_size,
            in_channels: self.in_channels,
            layers_per_block: self.num_res_blocks,
            attention_head_dim: Some(head_dim),
            transformer_layers_per_block: PerLevel::All(self.transformer_depth),
            downsample_type: resampling,
            upsample_type: resampling,
            resnet_time_scale_shift: if scale_shift {
                TimeScaleShift::ScaleShift
            } else {
                TimeScaleShift::Default
            },
            attn_norm_num_groups: (scale_shift && !self.use_spatial_transformer).then_some(GROUPS),
            num_class_embeds: self.num_classes,
            ..base
        };
        config.validate()?;
        Ok(config)
    }

    /// Refuses what has no counterpart.
    fn check(&self) -> Result<(), Error> {
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("model_channels", self.model_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("transformer_depth", self.transformer_depth),
        ] {
            if value == 0 {
                return Err(invalid(field, "is 0: it must be at least 1"));
            }
        }
        if self.channel_mult.first() != Some(&1) {
            let problem = "doesn't begin with 1: the finest level has `model_channels`";
            return Err(invalid("channel_mult", problem));
        }
        if self.dims != 2 {
            return Err(invalid(
                "dims",
                format!("is {}, but only 2 is supported", self.dims),
            ));
        }
        if !self.conv_resample && !self.resblock_updown {
            let problem = "is false, but only convolutions between the levels are supported";
            return Err(invalid("conv_resample", problem));
        }
        if self.n_embed.is_some() {
            let problem = "is set, but predicting indices of a codebook isn't supported";
            return Err(invalid("n_embed", problem));
        }
        if !self.use_spatial_transformer && self.context_dim.is_some() {
            let problem = "is set, but `use_spatial_transformer` is false";
            return Err(invalid("context_dim", problem));
        }
        let by_number = self.num_head_channels.is_none();
        if by_number && self.legacy && !self.use_spatial_transformer {
            // Everything else ignores the number on the way up.
            if let Some(up) = (self.num_heads_upsample).filter(|up| Some(*up) != self.num_heads) {
                return Err(invalid(
                    "num_heads_upsample",
                    format!("is {up}, but only the value of `num_heads` is supported"),
                ));
            }
        }
        Ok(())
    }

    /// `attention_head_dim`: numbers of heads for transformers, widths for plain attention.
    fn head_dim(&self, channels: &[usize], attends: &[bool]) -> Result<PerLevel, Error> {
        let (given, divisor, divides_into_answer) = match (self.num_head_channels, self.num_heads) {
            (Some(width), _) => ("num_head_channels", width, self.use_spatial_transformer),
            (None, Some(heads)) => ("num_heads", heads, !self.use_spatial_transformer),
            (None, None) => {
                let problem = "is missing: either it or `num_head_channels` is needed";
                return Err(invalid("num_heads", problem));
            }
        };
        let coarsest = channels.len() - 1;
        let attending = |level: usize| attends[level] || level == coarsest;
        if let Some(level) = (0..channels.len())
            .find(|level| attending(*level) && !channels[*level].is_multiple_of(divisor))
        {
            return Err(invalid(
                given,
                format!(
                    "is {divisor}, which doesn't divide the {} channels of level {level}",
                    channels[level]
                ),
            ));
        }
        if !divides_into_answer {
            return Ok(PerLevel::All(divisor));
        }
        // A level that doesn't attend has no say, but needs an entry.
        let answers: Vec<usize> = (channels.iter())
            .map(|channels| (channels / divisor).max(1))
            .collect();
        let uniform = (0..channels.len())
            .filter(|level| attending(*level))
            .all(|level| answers[level] == answers[coarsest]);
        Ok(if uniform {
            PerLevel::All(answers[coarsest])
        } else {
            PerLevel::Each(answers)
        })
    }

    /// The network of `config` in CompVis' terms, for export. [`to_config`](Self::to_config) gives an equivalent network back.
    ///
    /// # Errors
    /// Names the first field of `config` that CompVis' code has no counterpart for.
    pub fn from_config(config: &UNetConfig) -> Result<Self, Error> {
        config.validate()?;
        refuse_foreign(config)?;
        let channels = &config.block_out_channels;
        let levels = channels.len();
        let model_channels = channels[0];
        let transformers = config.mid_block() == MidBlockType::UNetMidBlock2DCrossAttn;

        let mut resnets = Vec::new();
        let mut attends = Vec::new();
        for level in 0..levels {
            let (attention, resnet) = level_kind(config, level, transformers)?;
            attends.push(attention);
            if level + 1 < levels {
                resnets.push(resnet.0);
            }
            if level > 0 {
                resnets.push(resnet.1);
            }
        }
        let resblock_updown = resnets.contains(&true);
        if resblock_updown && resnets.contains(&false) {
            let problem = "resamples by convolutions at some levels and by ResNet blocks at others: CompVis' code knows only one";
            return Err(foreign("down_block_types", problem));
        }
        let (num_heads, num_head_channels) = heads(config, &attends, transformers)?;
        let depths = attending_levels(&attends)
            .map(|level| config.transformer_layers_per_block.at(level))
            .collect::<Vec<_>>();
        if transformers && depths.iter().any(|depth| *depth != depths[0]) {
            let problem = "differs between levels: CompVis' code knows only one number";
            return Err(foreign("transformer_layers_per_block", problem));
        }
        let multiples = (channels.iter())
            .map(|channels| {
                if channels.is_multiple_of(model_channels) {
                    Ok(channels / model_channels)
                } else {
                    let problem = format!("has {channels}, no multiple of {model_channels}");
                    Err(foreign("block_out_channels", problem))
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            // The network ignores it, but its constructor asks for it.
            image_size: config.sample_size.or(Some(SampleSize::Square(32))),
            num_heads,
            num_head_channels,
            use_spatial_transformer: transformers,
            transformer_depth: if transformers { depths[0] } else { 1 },
            context_dim: config.cross_attention_dim.filter(|_| transformers),
            use_scale_shift_norm: config.resnet_time_scale_shift == TimeScaleShift::ScaleShift,
            resblock_updown,
            num_classes: config.num_class_embeds,
            ..Self::new(
                config.in_channels,
                config.out_channels,
                model_channels,
                config.layers_per_block,
                multiples,
                (0..levels)
                    .filter(|level| attends[*level])
                    .filter_map(factor)
                    .collect(),
            )
        })
    }
}

/// Options of diffusers alone.
fn refuse_foreign(config: &UNetConfig) -> Result<(), Error> {
    let mid_groups = config.mid_attention_groups();
    let plain_mid = config.mid_block() == MidBlockType::UNetMidBlock2D;
    let without_mid_attention = plain_mid
        && (!config.add_attention || config.class_name == UNetClass::UNet2DConditionModel);
    let table = [
        ("norm_num_groups", config.norm_num_groups != GROUPS),
        ("norm_eps", config.norm_eps != 1e-5),
        ("downsample_padding", config.downsample_padding != 1),
        ("flip_sin_to_cos", !config.flip_sin_to_cos),
        ("freq_shift", config.freq_shift != 0.0),
        ("class_embed_type", config.class_embed_type.is_some()),
        ("center_input_sample", config.center_input_sample),
        (
            "mid_block_type",
            plain_mid && config.class_name == UNetClass::UNet2DConditionModel,
        ),
        ("add_attention", without_mid_attention),
        (
            "attn_norm_num_groups",
            plain_mid && mid_groups != Some(GROUPS),
        ),
    ];
    match table.iter().find(|(_, foreign)| *foreign) {
        Some((field, _)) => {
            let problem = "has a value that CompVis' code has no counterpart for";
            Err(foreign(field, problem))
        }
        None => Ok(()),
    }
}

/// Whether `level` attends, and whether ResNet blocks lead from it down and up.
fn level_kind(
    config: &UNetConfig,
    level: usize,
    transformers: bool,
) -> Result<(bool, (bool, bool)), Error> {
    let attention = |resampling| (true, resampling == ResampleType::Resnet);
    let (down, down_transformer) = match config.down_block_types[level] {
        DownBlockType::DownBlock2D => ((false, false), None),
        DownBlockType::ResnetDownsampleBlock2D => ((false, true), None),
        DownBlockType::AttnDownBlock2D => (attention(config.downsample_type), Some(false)),
        DownBlockType::CrossAttnDownBlock2D => (attention(config.downsample_type), Some(true)),
    };
    let up_index = config.up_block_types.len() - 1 - level;
    let (up, up_transformer) = match config.up_block_types[up_index] {
        UpBlockType::UpBlock2D => ((false, false), None),
        UpBlockType::ResnetUpsampleBlock2D => ((false, true), None),
        UpBlockType::AttnUpBlock2D => (attention(config.upsample_type), Some(false)),
        UpBlockType::CrossAttnUpBlock2D => (attention(config.upsample_type), Some(true)),
    };
    if down_transformer != up_transformer {
        let problem = "attend at other levels than `down_block_types`, or in another way";
        return Err(foreign("up_block_types", problem));
    }
    if down_transformer.is_some_and(|transformer| transformer != transformers) {
        let problem = "attend in another way than the middle block";
        return Err(foreign("down_block_types", problem));
    }
    Ok((down.0, (down.1, up.1)))
}

/// The levels that attend; the coarsest does, for the middle.
fn attending_levels(attends: &[bool]) -> impl Iterator<Item = usize> + '_ {
    (0..attends.len()).filter(|level| attends[*level] || level + 1 == attends.len())
}

/// `num_heads` or `num_head_channels`, one of them.
fn heads(
    config: &UNetConfig,
    attends: &[bool],
    transformers: bool,
) -> Result<(Option<usize>, Option<usize>), Error> {
    let (heads, widths): (Vec<usize>, Vec<usize>) = attending_levels(attends)
        .map(|level| {
            let channels = config.block_out_channels[level];
            let head_dim = config.attention_head_dim.as_ref().map(|dim| dim.at(level));
            let head_dim = head_dim.unwrap_or(channels);
            if transformers {
                (head_dim, channels / head_dim)
            } else {
                (channels / head_dim, head_dim)
            }
        })
        .unzip();
    let uniform = |values: &[usize]| values.iter().all(|value| *value == values[0]);
    let by_width = uniform(&widths);
    // Where both would do, the one that the field means.
    if uniform(&heads) && (transformers || !by_width) {
        Ok((Some(heads[0]), None))
    } else if by_width {
        Ok((None, Some(widths[0])))
    } else {
        let problem = "gives neither the same number nor the same width of heads at all levels";
        Err(foreign("attention_head_dim", problem))
    }
}

/// A field of diffusers' configuration that CompVis' can't express.
fn foreign(field: &str, problem: impl Into<String>) -> Error {
    Error::invalid("U-Net for a CompVis checkpoint", field, problem)
}
