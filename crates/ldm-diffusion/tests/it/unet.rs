//! Shapes, initialisation and parameter counts of the U-Net.

use crate::common::values;
use burn::prelude::*;
use ldm_diffusion::{
    UNetConfig,
    unet::{DownBlockType::*, PerLevel, TimeScaleShift, UpBlockType::*},
};

fn device() -> Device {
    Device::flex()
}

fn ramp<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let ramp = Tensor::<1, Int>::arange(0..count as i64, &device()).float();
    (ramp * 0.37).sin().reshape(shape)
}

/// Two levels without attention.
fn plain() -> UNetConfig {
    UNetConfig {
        norm_num_groups: 4,
        layers_per_block: 1,
        ..UNetConfig::unconditional(
            3,
            vec![8, 16],
            vec![DownBlock2D, DownBlock2D],
            vec![UpBlock2D, UpBlock2D],
        )
    }
}

/// Two levels with transformers at both, context of width 6.
fn text() -> UNetConfig {
    UNetConfig {
        norm_num_groups: 4,
        layers_per_block: 1,
        attention_head_dim: Some(PerLevel::All(2)),
        ..UNetConfig::conditional(
            4,
            6,
            vec![8, 16],
            vec![CrossAttnDownBlock2D, CrossAttnDownBlock2D],
            vec![CrossAttnUpBlock2D, CrossAttnUpBlock2D],
        )
    }
}

fn attending(head_dim: Option<PerLevel>) -> UNetConfig {
    UNetConfig {
        down_block_types: vec![DownBlock2D, AttnDownBlock2D],
        up_block_types: vec![AttnUpBlock2D, UpBlock2D],
        attention_head_dim: head_dim,
        ..plain()
    }
}

/// Gives every parameter a value, so that no branch is 0.
fn filled(config: &UNetConfig) -> ldm_diffusion::UNet {
    struct Fill(f64);
    impl burn::module::ModuleMapper for Fill {
        fn map_float<const D: usize>(
            &mut self,
            param: burn::module::Param<Tensor<D>>,
        ) -> burn::module::Param<Tensor<D>> {
            self.0 += 1.0;
            let phase = self.0;
            param.map(|tensor| {
                let shape = tensor.dims();
                ramp(shape).add_scalar(phase).sin().mul_scalar(0.2)
            })
        }
    }
    config.init(&device()).map(&mut Fill(0.0))
}

#[test]
fn every_configuration_keeps_the_size_and_passes_its_condition_on() {
    let per_level = PerLevel::Each(vec![4, 8]);
    let table: [(&str, UNetConfig, [usize; 2]); 12] = [
        ("plain", plain(), [8, 8]),
        ("oblong", plain(), [4, 12]),
        ("odd", plain(), [7, 9]),
        (
            "one level",
            UNetConfig {
                block_out_channels: vec![8],
                down_block_types: vec![DownBlock2D],
                up_block_types: vec![UpBlock2D],
                ..plain()
            },
            [5, 5],
        ),
        (
            "heads of width 4",
            attending(Some(PerLevel::All(4))),
            [8, 8],
        ),
        ("one head", attending(None), [8, 8]),
        ("width per level", attending(Some(per_level)), [8, 8]),
        (
            "scale and shift",
            UNetConfig {
                resnet_time_scale_shift: TimeScaleShift::ScaleShift,
                ..attending(Some(PerLevel::All(8)))
            },
            [8, 8],
        ),
        (
            "padding right and bottom",
            UNetConfig {
                downsample_padding: 0,
                ..plain()
            },
            [8, 8],
        ),
        (
            "more channels in",
            UNetConfig {
                in_channels: 6,
                ..plain()
            },
            [8, 8],
        ),
        ("text", text(), [8, 8]),
        (
            "text, linear, two layers, odd",
            UNetConfig {
                use_linear_projection: true,
                transformer_layers_per_block: PerLevel::Each(vec![1, 2]),
                ..text()
            },
            [5, 6],
        ),
    ];
    for (name, config, [height, width]) in table {
        let unet = filled(&config);
        let x = ramp([2, config.in_channels, height, width]);
        let timesteps = Tensor::<1>::from_floats([3.0, 800.5], &device());
        let context = config.cross_attention_dim.map(|dim| ramp([2, 5, dim]));
        let output = unet.forward(x.clone(), timesteps.clone(), context.clone());
        assert_eq!(
            output.dims(),
            [2, config.out_channels, height, width],
            "{name}"
        );
        let output = values(output);
        assert!(output.iter().all(|value| value.is_finite()), "{name}");
        let earlier = unet.forward(
            x.clone(),
            timesteps.clone().sub_scalar(1.0),
            context.clone(),
        );
        assert_ne!(
            values(earlier),
            output,
            "{name}: the timestep has no effect"
        );
        if let Some(context) = context {
            let other = unet.forward(x, timesteps, Some(context.mul_scalar(-1.0)));
            assert_ne!(values(other), output, "{name}: the context has no effect");
        }
    }
}

#[test]
fn a_class_changes_the_output_of_its_item_alone() {
    let unet = filled(&UNetConfig {
        num_class_embeds: Some(3),
        ..plain()
    });
    let output = |labels: [i64; 2]| {
        let x = ramp([2, 3, 4, 4]);
        let timesteps = Tensor::<1>::from_floats([10.0, 10.0], &device());
        let labels = Tensor::<1, Int>::from_ints(labels, &device());
        values(unet.forward_with_class(x, timesteps, None, Some(labels)))
    };
    let (a, b) = (output([0, 1]), output([0, 2]));
    assert_eq!(a[..48], b[..48]);
    assert_ne!(a[48..], b[48..]);
}

#[test]
#[should_panic(expected = "attends to a context")]
fn a_missing_context_is_named() {
    let timesteps = Tensor::<1>::zeros([1], &device());
    text()
        .init(&device())
        .forward(ramp([1, 4, 4, 4]), timesteps, None);
}

#[test]
fn the_untrained_output_is_zero() {
    for config in [plain(), attending(None), text()] {
        let unet = config.init(&device());
        let timesteps = Tensor::<1>::from_floats([500.0], &device());
        let context = config.cross_attention_dim.map(|dim| ramp([1, 5, dim]));
        let output = unet.forward(ramp([1, config.in_channels, 4, 4]), timesteps, context);
        assert!(values(output).iter().all(|value| *value == 0.0));
        // Not the last layer alone: the branches start as the identity.
        let resnet = &unet.down_blocks[0].resnets[0];
        assert!(
            values(resnet.conv2.weight.val())
                .iter()
                .all(|weight| *weight == 0.0)
        );
        assert!(
            values(resnet.conv1.weight.val())
                .iter()
                .any(|weight| *weight != 0.0)
        );
    }
}

#[test]
fn the_presets_have_the_papers_parameter_counts() {
    let classes = UNetConfig {
        num_class_embeds: Some(10),
        ..plain()
    };
    let extra = classes.init(&device()).num_params() - plain().init(&device()).num_params();
    assert_eq!(extra, 10 * 32);
    for (config, count) in [
        (UNetConfig::celebahq(), 274_056_163),
        (UNetConfig::text_to_image(), 872_300_484),
        (UNetConfig::imagenet_f4(), 400_920_579),
        (UNetConfig::imagenet_f8(), 394_984_196),
        (UNetConfig::landscapes(), 215_229_315),
        (UNetConfig::lsun_churches(), 294_966_916),
    ] {
        // Parameters initialise on first use: counting allocates none.
        assert_eq!(config.init(&device()).num_params(), count);
    }
}
