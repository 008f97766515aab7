//! The text encoder of CompVis' checkpoints.

use std::{collections::BTreeMap, fs};

use burn::tensor::{Device, Tensor};
use ldm_nn::weights::Layout;
use ldm_text::{
    Activation, LdmBert, LdmBertConfig, Tokenizer,
    compvis::{BertEmbedderParams, CompVisError, compvis_keys},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::common::{Tensors, assert_close, fixture, json, load, numbers, shapes};

fn params(json: &str) -> BertEmbedderParams {
    serde_json::from_str(json).unwrap()
}

/// Name and shape of every tensor of the published text encoder.
fn listing() -> BTreeMap<String, Vec<usize>> {
    let path = fixture("state_dict_shapes/txt2img-1p4B-eval.text.txt");
    (fs::read_to_string(path).unwrap().lines())
        .map(|line| {
            let (name, shape) = line.split_once(' ').unwrap();
            let shape = shape.split(' ').map(|size| size.parse().unwrap());
            (name.to_owned(), shape.collect())
        })
        .collect()
}

/// CompVis' name and shape of every tensor of `config`'s network.
fn compvis_shapes(config: &LdmBertConfig) -> BTreeMap<String, Vec<usize>> {
    let mut ours = shapes(&config.init(&Device::flex()));
    let theirs = (compvis_keys(config).into_iter())
        .map(|pair| {
            assert_eq!(pair.layout, Layout::Same);
            let shape = (ours.remove(&pair.diffusers))
                .unwrap_or_else(|| panic!("{} isn't in the network", pair.diffusers));
            (pair.compvis, shape)
        })
        .collect();
    assert!(ours.is_empty(), "without a CompVis name: {ours:?}");
    theirs
}

#[test]
fn the_published_model_has_every_name_and_shape() {
    let config = params(r#"{"n_embed": 1280, "n_layer": 32}"#)
        .to_config()
        .unwrap();
    assert_eq!(config, LdmBertConfig::default());
    assert_eq!(compvis_shapes(&config), listing());

    let headless = LdmBertConfig {
        to_logits: false,
        ..config
    };
    let mut without_head = listing();
    without_head.retain(|name, _| !name.contains("to_logits"));
    assert_eq!(compvis_shapes(&headless), without_head);
}

#[test]
fn the_published_model_is_recognised_by_its_shapes() {
    let guessed = BertEmbedderParams::guess(&listing()).unwrap();
    assert_eq!(guessed, params(r#"{"n_embed": 1280, "n_layer": 32}"#));

    let mut wrong = listing();
    wrong.insert("transformer.pos_emb.emb.weight".into(), vec![77]);
    assert!(matches!(
        BertEmbedderParams::guess(&wrong).unwrap_err(),
        CompVisError::Shape { key: "transformer.pos_emb.emb.weight", found, .. } if found == [77]
    ));
    wrong.remove("transformer.token_emb.weight");
    assert_eq!(
        BertEmbedderParams::guess(&wrong).unwrap_err(),
        CompVisError::MissingTensor {
            key: "transformer.token_emb.weight"
        }
    );
}

#[test]
fn arguments_are_read_and_written() {
    let params = params(
        r#"{"n_embed": 24, "n_layer": 3, "vocab_size": 100, "max_seq_len": 9, "device": "cpu",
            "use_tokenizer": true, "embedding_dropout": 0.1}"#,
    );
    let config = params.to_config().unwrap();
    assert_eq!(
        config,
        LdmBertConfig {
            vocab_size: 100,
            max_position_embeddings: 9,
            encoder_layers: 3,
            encoder_ffn_dim: 96,
            d_model: 24,
            ..LdmBertConfig::default()
        }
    );
    let back = BertEmbedderParams::from_config(&config).unwrap();
    assert_eq!(back, params);
    assert_eq!(
        serde_json::to_value(&back).unwrap(),
        serde_json::json!({"n_embed": 24, "n_layer": 3, "vocab_size": 100, "max_seq_len": 9})
    );
}

#[test]
fn what_has_no_counterpart_is_named() {
    let refused = |change: fn(&mut LdmBertConfig)| {
        let mut config = LdmBertConfig::default();
        change(&mut config);
        BertEmbedderParams::from_config(&config)
            .unwrap_err()
            .to_string()
    };
    for (error, field) in [
        (
            refused(|config| config.encoder_attention_heads = 5),
            "`encoder_attention_heads` = 5",
        ),
        (refused(|config| config.head_dim = 32), "`head_dim` = 32"),
        (
            refused(|config| config.encoder_ffn_dim = 9),
            "`encoder_ffn_dim` = 9",
        ),
        (
            refused(|config| config.activation_function = Activation::Relu),
            "`activation_function` = Relu",
        ),
        (refused(|config| config.d_model = 0), "`d_model` is 0"),
    ] {
        assert!(error.contains(field), "{error}");
    }
    let ids = params(r#"{"n_embed": 8, "n_layer": 2, "use_tokenizer": false}"#);
    assert_eq!(ids.to_config(), Err(CompVisError::NoTokenizer));
    let unknown = r#"{"n_embed": 8, "n_layer": 2, "dim_head": 32}"#;
    let error = serde_json::from_str::<BertEmbedderParams>(unknown).unwrap_err();
    assert!(error.to_string().contains("`dim_head`"), "{error}");
}

/// The fixture's network, under diffusers' names.
fn model(tensors: &Tensors, device: &Device) -> LdmBert {
    let config = LdmBertConfig {
        to_logits: false,
        ..params(r#"{"n_embed": 8, "n_layer": 2, "vocab_size": 10240}"#)
            .to_config()
            .unwrap()
    };
    let mut embedding = vec![0; config.vocab_size * 8 * 4];
    let used = tensors.with("token_emb.used", |view| {
        numbers(view.data(), i64::from_le_bytes)
    });
    tensors.with("token_emb.rows", |view| {
        for (id, row) in used.iter().zip(view.data().chunks_exact(32)) {
            let start = *id as usize * 32;
            embedding[start..start + 32].copy_from_slice(row);
        }
    });
    let file = SafeTensors::deserialize(&tensors.0).unwrap();
    let views = compvis_keys(&config).into_iter().map(|pair| {
        let view = match pair.compvis.as_str() {
            "transformer.token_emb.weight" => {
                TensorView::new(Dtype::F32, vec![config.vocab_size, 8], &embedding).unwrap()
            }
            name => file.tensor(name).unwrap(),
        };
        (pair.diffusers, view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    let mut model = config.init(device);
    assert_eq!(load(&mut model, bytes, &[]), Vec::<String>::new());
    model
}

#[test]
fn embeddings_equal_compvis() {
    let device = Device::flex();
    let tensors = Tensors::open("compvis/text-kl-f8/text.safetensors");
    let model = model(&tensors, &device);
    let cases = json("compvis/text-kl-f8/prompts.json");
    let prompts: Vec<&str> = (cases["prompts"].as_array().unwrap().iter())
        .map(|prompt| prompt.as_str().unwrap())
        .collect();
    let empty = vec![cases["unconditional_prompt"].as_str().unwrap(); 3];
    for (texts, tokens, embedding) in [
        (prompts, "text.tokens", "text.embedding"),
        (empty, "text.uncond_tokens", "text.uncond_embedding"),
    ] {
        let ids = Tokenizer::bert().encode_batch(&texts, 77, &device);
        let expected = tensors.int::<2>(tokens, &device);
        ids.clone()
            .into_data()
            .assert_eq(&expected.into_data(), true);
        let expected: Tensor<3> = tensors.float(embedding, &device);
        // The tolerance is of the largest value, however small.
        let scale = expected.clone().abs().max().into_scalar::<f32>();
        assert_close(
            embedding,
            model.forward(ids).div_scalar(scale),
            expected.div_scalar(scale),
            5e-5,
        );
    }
}
