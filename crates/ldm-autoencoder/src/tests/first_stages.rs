//! First stages of the original code: complete listings of the published models, small models' outputs, configurations.

use std::collections::BTreeMap;

use burn::{
    module::{ModuleVisitor, Param},
    prelude::*,
};
use ldm_nn::weights::Layout;
use serde::Deserialize;

use super::{Expected, assert_parity, fixture, load_compvis, scalar};
use crate::{
    AutoencoderKl, AutoencoderKlConfig, ConfigError, DiagonalGaussian, DownBlockType, UpBlockType,
    VqModel, VqModelConfig,
    compvis::{CompVisError, FirstStageConfig, FirstStageParams},
};

type Shapes = BTreeMap<String, Vec<usize>>;

const TOLERANCE: f32 = 2e-4;

/// Shapes of a module's parameters under PyTorch's names, without initialising any. Linear layers here are square.
fn shapes<M: Module>(module: &M) -> Shapes {
    #[derive(Default)]
    struct Inventory {
        path: Vec<String>,
        shapes: Shapes,
    }
    impl ModuleVisitor for Inventory {
        fn enter_module(&mut self, name: &str, _container: &str) {
            let name = match name {
                "gamma" => "weight",
                "beta" => "bias",
                other => other,
            };
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.shapes
                .insert(self.path.join("."), param.lazy_shape().to_vec());
        }
    }
    let mut inventory = Inventory::default();
    module.visit(&mut inventory);
    inventory.shapes
}

fn model_shapes(config: &FirstStageConfig) -> Shapes {
    let device = Device::flex();
    match config {
        FirstStageConfig::Kl(config) => shapes(&config.init(&device)),
        FirstStageConfig::Vq(config) => shapes(&config.init(&device)),
    }
}

/// The model's tensors as a checkpoint of the original code would hold them.
fn compvis_shapes(config: &FirstStageConfig) -> Shapes {
    let mut ours = model_shapes(config);
    let theirs = config.compvis_keys().into_iter().map(|key| {
        let mut shape = ours
            .remove(&key.diffusers)
            .unwrap_or_else(|| panic!("the model has no {}", key.diffusers));
        if let Layout::Pointwise { axes } = key.layout {
            shape.extend(vec![1; axes]);
        }
        (key.compvis, shape)
    });
    let theirs = theirs.collect();
    assert!(ours.is_empty(), "without a counterpart: {ours:?}");
    theirs
}

fn params_of(config: &FirstStageConfig) -> Result<FirstStageParams, CompVisError> {
    match config {
        FirstStageConfig::Kl(config) => FirstStageParams::from_kl(config),
        FirstStageConfig::Vq(config) => FirstStageParams::from_vq(config),
    }
}

#[test]
fn published_models_have_every_tensor() {
    /// Models with the same first stage: their configurations, and its tensors.
    #[derive(Deserialize)]
    struct Listing {
        parameters: usize,
        models: BTreeMap<String, FirstStageParams>,
        tensors: Shapes,
    }
    let path = fixture("state_dict_shapes/first_stages.json");
    let listings: Vec<Listing> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let presets = BTreeMap::from([
        ("autoencoder_kl_64x64x3", kl(AutoencoderKlConfig::kl_f4())),
        ("autoencoder_kl_32x32x4", kl(AutoencoderKlConfig::kl_f8())),
        ("autoencoder_kl_16x16x16", kl(AutoencoderKlConfig::kl_f16())),
        ("autoencoder_kl_8x8x64", kl(AutoencoderKlConfig::kl_f32())),
        ("txt2img-1p4B-eval", kl(AutoencoderKlConfig::kl_f8())),
        ("lsun_churches-ldm-kl-8", kl(AutoencoderKlConfig::kl_f8())),
        ("vq-f4", vq(VqModelConfig::vq_f4())),
        ("celebahq-ldm-vq-4", vq(VqModelConfig::vq_f4())),
        ("cin256-v2", vq(VqModelConfig::vq_f4())),
        ("semantic_synthesis256", vq(VqModelConfig::vq_f4())),
        ("vq-f8", vq(VqModelConfig::vq_f8())),
        ("cin-ldm-vq-f8", vq(VqModelConfig::vq_f8())),
    ]);
    let mut seen = 0;
    for Listing {
        parameters,
        models,
        tensors,
    } in listings
    {
        for (model, params) in models {
            let config = params.to_config().unwrap();
            assert_eq!(config, presets[model.as_str()], "{model}");
            assert_eq!(params_of(&config), Ok(params), "{model}");
            assert_eq!(compvis_shapes(&config), tensors, "{model}");
            let count: usize = tensors.values().map(|s| s.iter().product::<usize>()).sum();
            assert_eq!(count, parameters, "{model}");
            seen += 1;
        }
        let guessed = FirstStageParams::guess(&tensors).unwrap();
        assert_eq!(compvis_shapes(&guessed.to_config().unwrap()), tensors);
    }
    assert_eq!(seen, presets.len());
}

fn kl(config: AutoencoderKlConfig) -> FirstStageConfig {
    FirstStageConfig::Kl(config)
}

fn vq(config: VqModelConfig) -> FirstStageConfig {
    FirstStageConfig::Vq(config)
}

/// Configuration of a checkpoint without a yaml.
fn guess(case: &str) -> (FirstStageConfig, String) {
    let path = format!("compvis/{case}/first_stage.safetensors");
    let bytes = std::fs::read(fixture(&path)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shapes = file
        .iter()
        .map(|(name, tensor)| (name.to_owned(), tensor.shape().to_vec()));
    let params = FirstStageParams::guess(&shapes.collect()).unwrap();
    (params.to_config().unwrap(), path)
}

fn kl_model(case: &str) -> AutoencoderKl {
    let (FirstStageConfig::Kl(config), path) = guess(case) else {
        panic!("{case} has no codebook");
    };
    let mut model = config.init(&Device::flex());
    load_compvis(&mut model, &path, &config.compvis_keys());
    model
}

fn vq_model(case: &str) -> VqModel {
    let (FirstStageConfig::Vq(config), path) = guess(case) else {
        panic!("{case} has a codebook");
    };
    let mut model = config.init(&Device::flex());
    load_compvis(&mut model, &path, &config.compvis_keys());
    model
}

fn expected(case: &str) -> Expected {
    Expected::load(&format!("compvis/{case}/first_stage_expected.safetensors"))
}

/// Standard deviation of a posterior.
fn std(posterior: &DiagonalGaussian) -> Tensor<4> {
    posterior.sample(posterior.mean.ones_like()) - posterior.mode()
}

#[test]
fn a_kl_autoencoder_is_the_originals() {
    let case = "autoencoder-kl-f4";
    let (model, expected) = (kl_model(case), expected(case));
    let close = |found: Tensor<4>, name| assert_parity(found, expected.tensor(name), TOLERANCE);
    let posterior = model.encode(expected.tensor("image"));
    close(posterior.moments(), "moments");
    close(posterior.mode(), "mean");
    close(posterior.logvar.clone(), "logvar");
    close(std(&posterior), "std");
    assert_parity(posterior.kl(), expected.tensor("kl"), TOLERANCE);
    let sample = posterior.sample(expected.tensor("noise"));
    close(sample.clone(), "sample");
    close(model.decode(sample), "decoded");
    close(model.decode(posterior.mode()), "decoded_mode");

    let clamped = DiagonalGaussian::from_moments(expected.tensor("clamp.moments"));
    close(clamped.logvar.clone(), "clamp.logvar");
    close(std(&clamped), "clamp.std");
    assert_parity(clamped.kl(), expected.tensor("clamp.kl"), TOLERANCE);
}

#[test]
fn kl_first_stages_are_the_originals() {
    for case in ["text-kl-f8", "uncond-kl"] {
        let (model, expected) = (kl_model(case), expected(case));
        let close = |found: Tensor<4>, name| assert_parity(found, expected.tensor(name), TOLERANCE);
        let scale = scalar(expected.tensor::<1>("scale_factor"));
        let posterior = model.encode(expected.tensor("image"));
        close(posterior.moments(), "moments");
        let sample = posterior.sample(expected.tensor("noise"));
        close(sample.clone(), "sample");
        close(sample.mul_scalar(scale), "latent");
        let latents = expected.tensor::<4>("z").div_scalar(scale);
        close(model.decode(latents), "decoded");
    }
}

#[test]
fn vq_first_stages_are_the_originals() {
    for case in ["uncond-vq-f4", "class-vq-f4", "semantic-vq-f4"] {
        let (model, expected) = (vq_model(case), expected(case));
        let close = |found: Tensor<4>, name| assert_parity(found, expected.tensor(name), TOLERANCE);
        close(model.encode(expected.tensor("image")), "latent");
        let quantized = model.quantize(expected.tensor("z"));
        let indices: Vec<i32> = quantized.indices.into_data().iter().collect();
        assert_eq!(indices, expected.integers("indices"), "{case}");
        // The reference's are `z + (code - z)`, which is the code but for rounding.
        assert_parity(quantized.latents, expected.tensor("quantized"), 2e-7);
        close(model.decode(expected.tensor("z")), "decoded");
        close(
            model.decode_quantized(expected.tensor("z")),
            "decoded_not_quantized",
        );
    }
}

fn parse(json: &str) -> FirstStageParams {
    serde_json::from_str(json).unwrap()
}

/// A KL autoencoder with these arguments besides.
fn ddconfig(others: &str) -> FirstStageParams {
    parse(&format!(
        r#"{{"embed_dim": 4, "ddconfig": {{"z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 32, "num_res_blocks": 1, {others}}}}}"#
    ))
}

#[test]
fn attention_follows_the_nominal_resolution() {
    let params =
        ddconfig(r#""resolution": 100, "ch_mult": [1, 1, 1, 1], "attn_resolutions": [12, 48]"#);
    let FirstStageConfig::Kl(config) = params.to_config().unwrap() else {
        panic!("there is no codebook");
    };
    // 100, 50, 25, 12 on the way down, 12, 24, 48, 96 on the way up.
    use DownBlockType::{AttnDown, Down};
    use UpBlockType::{AttnUp, Up};
    assert_eq!(config.down_block_types, [Down, Down, Down, AttnDown]);
    assert_eq!(config.up_block_types, [AttnUp, Up, AttnUp, Up]);
    assert_eq!(config.sample_size, 100);

    let params = ddconfig(r#""resolution": 64, "attn_resolutions": [64, 32], "attn_type": "none""#);
    let config = params.to_config().unwrap();
    let keys = config.compvis_keys();
    assert!(keys.iter().all(|key| !key.compvis.contains("attn")));
    // The original code's default is four levels of 1, 2, 4, 8 times the channels.
    assert!(
        keys.iter()
            .any(|key| key.compvis == "decoder.up.3.block.1.conv2.bias")
    );
}

#[test]
fn what_only_training_reads_is_accepted_and_the_rest_named() {
    let dd = r#""ddconfig": {"double_z": false, "z_channels": 3, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0"#;
    let params = parse(&format!(
        r#"{{"embed_dim": 2, "n_embed": 7, {dd}}}, "ckpt_path": null, "monitor": "val/rec_loss", "remap": null, "sane_index_shape": true, "lossconfig": {{"target": "x", "params": {{"disc_start": 1}}}}, "image_key": "image", "colorize_nlabels": 3, "use_ema": false, "ignore_keys": ["loss"]}}"#
    ));
    let FirstStageConfig::Vq(config) = params.to_config().unwrap() else {
        panic!("there is a codebook");
    };
    assert_eq!((config.latent_channels, config.vq_embed_dim), (3, Some(2)));
    let json = serde_json::to_value(&params).unwrap();
    assert_eq!(json["lossconfig"]["target"], "torch.nn.Identity");
    assert_eq!(json["ddconfig"]["double_z"], false);
    assert_eq!(json["ddconfig"].get("tanh_out"), None);
    assert_eq!(parse(&json.to_string()), params);

    for json in [
        format!(r#"{{"embed_dim": 2, {dd}}}, "n_embedd": 7}}"#),
        format!(r#"{{"embed_dim": 2, {dd}, "n_embedd": 7}}}}"#),
    ] {
        let error = serde_json::from_str::<FirstStageParams>(&json).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `n_embedd`"),
            "{error}"
        );
    }
}

#[test]
fn architectures_without_a_counterpart_are_refused() {
    let base = r#""resolution": 64, "attn_resolutions": []"#;
    let cases = [
        (
            r#""tanh_out": true"#,
            "`tanh_out` is true; it must be false",
        ),
        (
            r#""resamp_with_conv": false"#,
            "`resamp_with_conv` is false; it must be true",
        ),
        (
            r#""use_linear_attn": true"#,
            "`use_linear_attn` is true; it must be false",
        ),
        (
            r#""double_z": false"#,
            "`double_z` is false; it must be true without `n_embed`",
        ),
        (
            r#""ch_mult": [2, 4]"#,
            "`ch_mult` is [2, 4]; its first entry must be 1",
        ),
        (r#""ch_mult": []"#, "`ch_mult` is []"),
        (
            r#""ch_mult": [1, 99999999999999999]"#,
            "`block_out_channels` is 3199999999999999968; it must be at most 1048576",
        ),
    ];
    for (others, message) in cases {
        let error = ddconfig(&format!("{base}, {others}"))
            .to_config()
            .unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
    }
    let deep = vec!["1"; 70].join(", ");
    assert_eq!(
        ddconfig(&format!(r#"{base}, "ch_mult": [{deep}]"#)).to_config(),
        Err(ConfigError::TooManyLevels(70).into())
    );
    let narrow = FirstStageParams {
        embed_dim: 3,
        ..ddconfig(base)
    };
    let error = narrow.to_config().unwrap_err().to_string();
    assert_eq!(
        error,
        "`embed_dim` is 3; a KL autoencoder's must equal its `z_channels`"
    );
}

#[test]
fn configurations_beyond_the_original_code_are_refused() {
    let base = || AutoencoderKlConfig::new(vec![32, 64], 4, 1);
    let cases = [
        (
            AutoencoderKlConfig {
                norm_num_groups: 16,
                ..base()
            },
            "norm_num_groups",
        ),
        (
            AutoencoderKlConfig {
                block_out_channels: vec![64, 96],
                ..base()
            },
            "block_out_channels",
        ),
        (
            AutoencoderKlConfig {
                up_block_types: vec![UpBlockType::Up; 2],
                ..base()
            },
            "up_block_types",
        ),
        (
            AutoencoderKlConfig {
                mid_block_add_attention: false,
                ..base()
            },
            "mid_block_add_attention",
        ),
        (
            AutoencoderKlConfig {
                use_quant_conv: false,
                ..base()
            },
            "use_quant_conv",
        ),
    ];
    for (config, expected) in cases {
        match FirstStageParams::from_kl(&config) {
            Err(CompVisError::Inexpressible { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn both_directions_agree_at_any_size() {
    let configs = [
        kl(AutoencoderKlConfig {
            sample_size: 8,
            layers_per_block: 3,
            ..AutoencoderKlConfig::new(vec![32, 32, 96, 64], 5, 2)
        }),
        vq(VqModelConfig {
            sample_size: 64,
            vq_embed_dim: Some(2),
            in_channels: 1,
            out_channels: 6,
            ..VqModelConfig::new(vec![64, 64, 128], 3, 100, 3)
        }),
        vq(VqModelConfig {
            mid_block_add_attention: false,
            ..VqModelConfig::new(vec![32, 64], 3, 10, 0)
        }),
    ];
    for config in configs {
        let params = params_of(&config).unwrap();
        assert_eq!(params.to_config(), Ok(config.clone()));
        let shapes = compvis_shapes(&config);
        let guessed = FirstStageParams::guess(&shapes)
            .unwrap()
            .to_config()
            .unwrap();
        assert_eq!(compvis_shapes(&guessed), shapes);
    }
    // The nominal resolution has to tell the levels apart.
    let odd = AutoencoderKlConfig {
        sample_size: 3,
        ..AutoencoderKlConfig::new(vec![32, 32, 32], 4, 2)
    };
    let params = FirstStageParams::from_kl(&odd).unwrap();
    assert_eq!(params.ddconfig.resolution, 4);
    assert_eq!(params.ddconfig.attn_resolutions, [2, 1]);
}

#[test]
fn a_guess_names_what_it_misses() {
    let config = vq(VqModelConfig::vq_f4());
    let complete = compvis_shapes(&config);
    let without = |key: &str| {
        let mut shapes = complete.clone();
        shapes.remove(key);
        FirstStageParams::guess(&shapes)
    };
    for key in ["encoder.conv_in.weight", "post_quant_conv.weight"] {
        assert_eq!(
            without(key),
            Err(CompVisError::MissingTensor { key: key.into() })
        );
    }
    for (key, shape) in [
        ("encoder.conv_in.weight", vec![128]),
        ("encoder.conv_in.weight", vec![0, 3, 3, 3]),
        ("encoder.down.1.block.0.conv1.weight", vec![100, 128, 3, 3]),
        ("quantize.embedding.weight", vec![8192]),
    ] {
        let mut shapes = complete.clone();
        shapes.insert(key.into(), shape.clone());
        match FirstStageParams::guess(&shapes) {
            Err(CompVisError::Shape {
                key: named, found, ..
            }) => {
                assert_eq!((named.as_str(), found), (key, shape));
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}
