use burn::prelude::*;

use super::{assert_close, moved, pictures, tiny, uniform, values};
use crate::{
    AutoencoderKlConfig, ConfigError, DiagonalGaussian, DownBlockType, PatchDiscriminatorConfig,
    UpBlockType,
};

#[test]
fn presets_have_the_published_parameter_counts() {
    let device = Device::flex();
    let presets = [
        (AutoencoderKlConfig::kl_f4(), 4, 55_312_063),
        (AutoencoderKlConfig::kl_f8(), 8, 83_653_863),
        (AutoencoderKlConfig::kl_f16(), 16, 69_610_963),
        (AutoencoderKlConfig::kl_f32(), 32, 103_880_131),
    ];
    for (config, factor, parameters) in presets {
        let model = config.init(&device);
        assert_eq!(model.num_params(), parameters, "f{factor}");
        assert_eq!((config.factor(), model.factor()), (factor, factor));
    }
    let discriminator = PatchDiscriminatorConfig::default().init(&device);
    assert_eq!(discriminator.num_trained_params(), 2_765_633);
}

#[test]
fn shapes_follow_the_configuration() {
    let device = Device::flex();
    let narrow = AutoencoderKlConfig {
        norm_num_groups: 2,
        ..AutoencoderKlConfig::new(vec![4, 8], 3, 0)
    };
    let bare = AutoencoderKlConfig {
        use_quant_conv: false,
        use_post_quant_conv: false,
        mid_block_add_attention: false,
        ..tiny(&[4, 8])
    };
    let grey = AutoencoderKlConfig {
        in_channels: 1,
        out_channels: 1,
        ..tiny(&[4, 4])
    };
    let attending = AutoencoderKlConfig {
        norm_num_groups: 4,
        layers_per_block: 2,
        ..AutoencoderKlConfig::new(vec![4, 4, 8, 8, 8], 16, 1)
    };
    let deep = AutoencoderKlConfig {
        norm_num_groups: 4,
        ..AutoencoderKlConfig::new(vec![4, 4, 4, 4, 8, 8], 64, 2)
    };
    let cases = [
        (tiny(&[4]), [5, 7]),
        (narrow, [6, 10]),
        (bare, [6, 10]),
        (grey, [6, 2]),
        (tiny(&[4, 8, 8]), [12, 20]),
        (tiny(&[4, 8, 8, 8]), [24, 8]),
        (attending, [16, 48]),
        (deep, [32, 96]),
    ];
    for (config, [height, width]) in cases {
        let (channels, f) = (config.in_channels, config.factor());
        let model = config.init(&device);
        let images = uniform([2, channels, height, width], 1.0, 1);
        let posterior = model.encode(images.clone());
        let latent = [2, config.latent_channels, height / f, width / f];
        assert_eq!(posterior.mean.dims(), latent, "{config:?}");
        assert_eq!(posterior.logvar.dims(), latent);
        assert_eq!(posterior.kl().dims(), [2]);
        assert_eq!(model.decode(posterior.mode()).dims(), images.dims());
    }
}

#[test]
fn decode_is_the_last_convolution_of_its_features() {
    let model = tiny(&[4, 8]).init(&Device::flex());
    let latents = uniform([1, 4, 3, 5], 1.0, 2);
    let features = model.decode_features(latents.clone());
    assert_eq!(features.dims(), [1, 4, 6, 10]);
    let images = ldm_nn::ops::conv2d(&model.decoder.conv_out, features);
    assert_close(images, model.decode(latents), 0.0);
}

#[test]
fn one_level_attends_where_its_type_says() {
    let model = AutoencoderKlConfig {
        norm_num_groups: 4,
        ..AutoencoderKlConfig::new(vec![4, 8], 4, 1)
    }
    .init(&Device::flex());
    let encoder: Vec<_> = model
        .encoder
        .down_blocks
        .iter()
        .map(|block| block.attentions.len())
        .collect();
    let decoder: Vec<_> = model
        .decoder
        .up_blocks
        .iter()
        .map(|block| block.attentions.len())
        .collect();
    assert_eq!((encoder, decoder), (vec![0, 1], vec![2, 0]));
}

#[test]
fn logvar_is_clamped_and_its_gradient_cut_there() {
    let logvar = Tensor::<4>::from_floats([[[[-40.0]], [[0.5]], [[30.0]]]], &Device::flex());
    let mean = logvar.zeros_like();
    let moments = Tensor::cat(vec![mean, logvar], 1).autodiff().require_grad();
    let posterior = DiagonalGaussian::from_moments(moments.clone());
    assert_eq!(values(posterior.logvar.clone()), [-30.0, 0.5, 20.0]);
    let gradient = moments.grad(&posterior.logvar.sum().backward()).unwrap();
    assert_eq!(values(gradient), [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn kl_is_zero_for_the_prior_and_matches_its_formula_elsewhere() {
    let prior = DiagonalGaussian::from_moments(Tensor::zeros([2, 4, 3, 3], &Device::flex()));
    assert_eq!(values(prior.kl()), [0.0, 0.0]);

    let moments = uniform([2, 4, 3, 3], 2.0, 3);
    let posterior = DiagonalGaussian::from_moments(moments);
    let (mean, logvar) = (
        values(posterior.mean.clone()),
        values(posterior.logvar.clone()),
    );
    let kl = values(posterior.kl());
    for (image, kl) in kl.into_iter().enumerate() {
        let terms = mean.iter().zip(&logvar).skip(18 * image).take(18);
        let expected: f64 = terms
            .map(|(&mean, &logvar)| {
                0.5 * (f64::from(mean).powi(2) + f64::from(logvar).exp() - 1.0 - f64::from(logvar))
            })
            .sum();
        super::assert_near(kl, expected as f32, 1e-6);
    }
}

#[test]
fn a_sample_is_the_mean_plus_scaled_noise() {
    let mean = uniform([1, 2, 2, 2], 1.0, 4);
    let logvar = mean.full_like(2.0 * 3f64.ln());
    let posterior = DiagonalGaussian::from_moments(Tensor::cat(vec![mean.clone(), logvar], 1));
    let noise = uniform([1, 2, 2, 2], 1.0, 5);
    assert_close(posterior.sample(noise.zeros_like()), mean.clone(), 0.0);
    assert_close(
        posterior.sample(noise.clone()),
        mean + noise.mul_scalar(3.0),
        1e-6,
    );
    assert_close(posterior.moments().narrow(1, 0, 2), posterior.mode(), 0.0);
}

#[test]
fn kl_alone_moves_only_the_encoder_and_quant_conv() {
    let model = tiny(&[4, 8]).init(&Device::flex().autodiff());
    let loss = model.encode(pictures(1, 8)).kl().sum();
    let grads = burn::optim::GradientsParams::from_grads(loss.backward(), &model);
    let paths = moved(&model, &grads);
    assert!(
        paths
            .iter()
            .all(|path| path.starts_with("encoder.") || path.starts_with("quant_conv."))
    );
    for part in [
        "encoder.conv_in.weight",
        "encoder.mid_block.attentions.0.to_v.weight",
        "quant_conv.weight",
    ] {
        assert!(paths.iter().any(|path| path == part), "{part} stands still");
    }
}

#[test]
fn downsampling_pads_right_and_bottom() {
    let device = Device::flex();
    let model = tiny(&[4, 4]).init(&device);
    let down = &model.encoder.down_blocks[0].downsamplers[0];
    let mut corner = vec![0.0f32; 4 * 4 * 4];
    corner[0] = 1.0;
    let corner = Tensor::<4>::from_data(TensorData::new(corner, [1, 4, 4, 4]), &device);
    let response = down.forward(corner.clone()) - down.forward(corner.zeros_like());
    assert_eq!(response.dims(), [1, 4, 2, 2]);
    // Without padding on the left and on top, the first pixel meets the kernel's first tap.
    let tap = down.conv.weight.val().slice([0..4, 0..1, 0..1, 0..1]);
    let first = response.slice([0..1, 0..4, 0..1, 0..1]);
    assert_close(first.swap_dims(0, 1), tap, 1e-6);
}

#[test]
fn a_discriminator_needs_its_smallest_image() {
    let device = Device::flex();
    for layers in [1, 2, 3] {
        let config = PatchDiscriminatorConfig {
            channels: 2,
            layers,
            ..PatchDiscriminatorConfig::default()
        };
        let side = config.min_image_size();
        let model = config.init(&device);
        assert_eq!(
            model.forward(uniform([1, 3, side, side], 1.0, 1)).dims(),
            [1, 1, 1, 1]
        );
    }
    assert_eq!(PatchDiscriminatorConfig::default().min_image_size(), 24);
}

#[test]
fn config_json_is_diffusers() {
    let config = AutoencoderKlConfig {
        scaling_factor: 0.9,
        ..AutoencoderKlConfig::kl_f16()
    };
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json["_class_name"], "AutoencoderKL");
    assert_eq!(json["act_fn"], "silu");
    assert_eq!(json["down_block_types"][4], "AttnDownEncoderBlock2D");
    assert_eq!(json["up_block_types"][0], "AttnUpDecoderBlock2D");
    assert_eq!(json["up_block_types"][4], "UpDecoderBlock2D");
    assert_eq!(
        serde_json::from_value::<AutoencoderKlConfig>(json).unwrap(),
        config
    );

    let defaults: AutoencoderKlConfig =
        serde_json::from_str(r#"{"latents_mean": null, "_diffusers_version": "0.36.0"}"#).unwrap();
    assert_eq!(defaults, AutoencoderKlConfig::default());
    assert_eq!(defaults.down_block_types, [DownBlockType::Down]);
    assert_eq!(defaults.up_block_types, [UpBlockType::Up]);

    let error =
        serde_json::from_str::<AutoencoderKlConfig>(r#"{"_class_name": "VQModel"}"#).unwrap_err();
    assert!(
        error.to_string().contains("expected `AutoencoderKL`"),
        "{error}"
    );
}

#[test]
fn wrong_configurations_are_named() {
    let base = || tiny(&[4, 8]);
    let cases: Vec<(AutoencoderKlConfig, ConfigError, &str)> = vec![
        (
            AutoencoderKlConfig {
                latent_channels: 0,
                ..base()
            },
            ConfigError::Zero {
                field: "latent_channels",
            },
            "`latent_channels` is 0",
        ),
        (
            AutoencoderKlConfig {
                block_out_channels: vec![],
                ..base()
            },
            ConfigError::Zero {
                field: "block_out_channels",
            },
            "`block_out_channels` is 0",
        ),
        (
            AutoencoderKlConfig {
                up_block_types: vec![UpBlockType::Up],
                ..base()
            },
            ConfigError::LevelCount {
                field: "up_block_types",
                found: 1,
                expected: 2,
            },
            "`up_block_types` has 1 entries, but `block_out_channels` has 2",
        ),
        (
            AutoencoderKlConfig {
                norm_num_groups: 3,
                ..base()
            },
            ConfigError::Groups {
                level: 0,
                channels: 4,
                groups: 3,
            },
            "`block_out_channels[0]` is 4, which `norm_num_groups` = 3",
        ),
        (
            AutoencoderKlConfig {
                scaling_factor: 0.0,
                ..base()
            },
            ConfigError::Range {
                field: "scaling_factor",
                value: 0.0,
                range: "finite and above 0",
            },
            "`scaling_factor` is 0; it must be finite and above 0",
        ),
        (
            AutoencoderKlConfig {
                shift_factor: Some(0.06),
                ..base()
            },
            ConfigError::ShiftFactor(0.06),
            "`shift_factor` is 0.06",
        ),
    ];
    for (config, expected, message) in cases {
        let error = config.validate().unwrap_err();
        assert_eq!(error, expected);
        assert!(error.to_string().starts_with(message), "{error}");
    }
    assert_eq!(base().validate(), Ok(()));
}
