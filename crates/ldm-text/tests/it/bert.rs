//! BERT against transformers.

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use ldm_text::{
    BertConfig, BertModel,
    weights::{BERT_KEY_MAP, BERT_KEY_MAP_OUT, BERT_SKIP},
};
use regex::{Regex, RegexSet};
use safetensors::SafeTensors;

use crate::common::{Tensors, assert_close, json, load, shapes};

/// The README's tolerance.
const TOLERANCE: f32 = 1e-5;

fn config() -> BertConfig {
    serde_json::from_value(json("transformers/bert-tiny/config.json")).unwrap()
}

fn model(config: &BertConfig, bytes: Vec<u8>, device: &Device) -> BertModel {
    let mut model = config.init(device);
    let unused = load(&mut model, bytes, BERT_KEY_MAP);
    let skip = RegexSet::new(BERT_SKIP).unwrap();
    assert!(!unused.is_empty(), "the fixture has a pooler");
    assert!(unused.iter().all(|name| skip.is_match(name)), "{unused:?}");
    model
}

fn weights() -> Tensors {
    Tensors::open("transformers/bert-tiny/model.safetensors")
}

fn expected() -> Tensors {
    Tensors::open("transformers/bert-tiny/expected.safetensors")
}

fn map(name: &str, key_map: &[(&str, &str)]) -> String {
    key_map
        .iter()
        .fold(name.to_owned(), |name, (pattern, replacement)| {
            let pattern = Regex::new(pattern).unwrap();
            pattern.replace_all(&name, *replacement).into_owned()
        })
}

#[test]
fn hidden_states_equal_transformers_with_and_without_mask() {
    let device = Device::flex();
    let (model, expected) = (model(&config(), weights().bytes(), &device), expected());
    let ids: Tensor<2, Int> = expected.int("ids", &device);
    let mask = expected.int("mask", &device).equal_elem(1);
    let close = |name: &str, found: Tensor<3>| {
        assert_close(name, found, expected.float(name, &device), TOLERANCE);
    };
    close("out", model.forward(ids.clone(), None));
    let all = Tensor::<2>::ones(ids.dims(), &device).bool();
    close("out", model.forward(ids.clone(), Some(all)));
    close("out.masked", model.forward(ids.clone(), Some(mask)));
    close("out.short", model.forward(ids.narrow(1, 0, 5), None));
}

#[test]
fn activations_equal_transformers() {
    let device = Device::flex();
    let expected = expected();
    let ids = expected.int::<2>("ids", &device).narrow(0, 1, 1);
    let of = |name: &str| {
        let mut settings = json("transformers/bert-tiny/config.json");
        settings["hidden_act"] = name.into();
        let config = serde_json::from_value(settings).unwrap();
        model(&config, weights().bytes(), &device).forward(ids.clone(), None)
    };
    for name in [
        "gelu",
        "gelu_new",
        "gelu_fast",
        "gelu_pytorch_tanh",
        "quick_gelu",
        "relu",
        "silu",
        "tanh",
    ] {
        let reference = expected.float(&format!("out.{name}"), &device);
        assert_close(name, of(name), reference, TOLERANCE);
    }
}

#[test]
fn what_is_masked_has_no_influence() {
    let device = Device::flex();
    let model = model(&config(), weights().bytes(), &device);
    let run = |padding: i64| {
        let ids = Tensor::from_data([[2_i64, 5, 7, 3, padding, padding]], &device);
        let mask = Tensor::from_data([[true, true, true, true, false, false]], &device);
        model.forward(ids, Some(mask)).narrow(1, 0, 4)
    };
    run(0).into_data().assert_eq(&run(9).into_data(), true);
}

/// bert-base-uncased's own file: a model with a head, whose norms have TensorFlow's names, and a table of positions.
#[test]
fn names_of_published_checkpoints_are_understood() {
    let device = Device::flex();
    let original = weights();
    let tensors = SafeTensors::deserialize(&original.0).unwrap();
    let positions: Vec<u8> = (0..16_i64).flat_map(i64::to_le_bytes).collect();
    let mut renamed: Vec<(String, safetensors::tensor::TensorView)> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let name = format!("bert.{name}")
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            (name, view)
        })
        .collect();
    let table =
        safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![1, 16], &positions);
    renamed.push(("bert.embeddings.position_ids".to_owned(), table.unwrap()));
    let skip = RegexSet::new(BERT_SKIP).unwrap();
    assert!(
        skip.is_match("bert.embeddings.position_ids") && skip.is_match("bert.pooler.dense.bias")
    );
    assert!(
        skip.is_match("cls.predictions.bias")
            && !skip.is_match("encoder.layer.0.output.dense.bias")
    );

    let bytes = safetensors::serialize(renamed, None).unwrap();
    let model = model(&config(), bytes, &device);
    let ids = expected().int("ids", &device);
    let reference = expected().float("out", &device);
    assert_close("out", model.forward(ids, None), reference, TOLERANCE);
}

#[test]
fn names_on_disk_are_transformers() {
    let config = config();
    let original = weights();
    let tensors = SafeTensors::deserialize(&original.0).unwrap();
    let skip = RegexSet::new(BERT_SKIP).unwrap();
    let theirs = (tensors.tensors().into_iter())
        .filter(|(name, _)| !skip.is_match(name))
        .map(|(name, view)| (name, view.shape().to_vec()))
        .collect();
    let fields = shapes(&config.init(&Device::flex()));
    let ours: std::collections::BTreeMap<_, _> = (fields.into_iter())
        .map(|(name, shape)| {
            let on_disk = map(&name, BERT_KEY_MAP_OUT);
            assert_eq!(map(&on_disk, BERT_KEY_MAP), name);
            (on_disk, shape)
        })
        .collect();
    assert_eq!(ours, theirs);
}

#[test]
fn published_sizes() {
    let count = |config: &BertConfig| config.init(&Device::flex()).num_params();
    // bert-base-uncased's 109,482,240 with its pooler, 768 * 769.
    assert_eq!(count(&BertConfig::default()), 109_482_240 - 590_592);
    let minilm = BertConfig {
        hidden_size: 384,
        num_hidden_layers: 6,
        intermediate_size: 1536,
        ..BertConfig::default()
    };
    // all-MiniLM-L6-v2's 22,713,216, its pooler 384 * 385.
    assert_eq!(count(&minilm), 22_713_216 - 147_840);
}

#[test]
fn wrong_configurations_are_named() {
    let mut wrong = config();
    wrong.num_attention_heads = 5;
    let error = wrong.validate().unwrap_err().to_string();
    assert_eq!(
        error,
        "`num_attention_heads` is 5; it must divide `hidden_size`"
    );
    wrong.num_attention_heads = 0;
    let error = wrong.validate().unwrap_err().to_string();
    assert_eq!(error, "`num_attention_heads` is 0; it must be at least 1");
    assert_eq!(config().validate(), Ok(()));

    let mut settings = json("transformers/bert-tiny/config.json");
    settings["position_embedding_type"] = "relative_key".into();
    let error = serde_json::from_value::<BertConfig>(settings).unwrap_err();
    assert!(error.to_string().contains("`relative_key`"), "{error}");
}

#[test]
fn configurations_survive_writing() {
    let written = serde_json::to_value(config()).unwrap();
    assert_eq!(written["model_type"], "bert");
    let read: BertConfig = serde_json::from_value(written).unwrap();
    assert_eq!(read, config());
}

#[test]
#[should_panic(expected = "17 tokens, but the model has positions for 16")]
fn too_long() {
    let device = Device::flex();
    let ids = Tensor::zeros([1, 17], &device);
    config().init(&device).forward(ids, None);
}
