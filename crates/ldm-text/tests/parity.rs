//! Token ids and embeddings against the reference implementations.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use burn_store::{ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use ldm_text::{LdmBertConfig, Tokenizer};
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// The cases cover accents, CJK, the empty text, over-long ones, control characters, emoji and special tokens.
fn assert_ids(cases: &serde_json::Value) {
    let tokenizer = Tokenizer::bert();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 6);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, expected.len()), expected, "{text:?}");
    }
}

#[test]
fn ids_equal_compvis() {
    assert_ids(&json("compvis/text-kl-f8/prompts.json")["tokenization"]);
}

#[test]
fn ids_equal_diffusers() {
    assert_ids(&json("diffusers/ldm-text2im/expected.json")["tokens"]);
}

#[test]
fn embeddings_equal_diffusers() {
    let device = Device::flex();
    let config: LdmBertConfig =
        serde_json::from_value(json("diffusers/ldm-text2im/bert/config.json")).unwrap();
    let mut model = config.init(&device);
    let mut store =
        SafetensorsStore::from_file(fixture("diffusers/ldm-text2im/bert/model.safetensors"))
            .with_from_adapter(PyTorchToBurnAdapter);
    let result = model.load_from(&mut store).unwrap();
    assert!(
        result.missing.is_empty() && result.unused.is_empty() && result.errors.is_empty(),
        "{result}"
    );

    let expected = json("diffusers/ldm-text2im/expected.json");
    let prompts: Vec<&str> = expected["embedded_prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|index| {
            expected["tokens"][index.as_u64().unwrap() as usize]["text"]
                .as_str()
                .unwrap()
        })
        .collect();
    let ids = Tokenizer::bert().encode_batch(&prompts, config.max_position_embeddings, &device);
    let embeddings = model.forward(ids);

    let file = std::fs::read(fixture("diffusers/ldm-text2im/expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let reference = tensors.tensor("out.text.embeddings").unwrap();
    let values: Vec<f32> = reference
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let reference =
        Tensor::<3>::from_data(TensorData::new(values, reference.shape().to_vec()), &device);
    let error = (embeddings - reference.clone())
        .abs()
        .max()
        .into_scalar::<f32>();
    let scale = reference.abs().max().into_scalar::<f32>().max(1.0);
    assert!(error <= 3e-5 * scale, "error {error} at scale {scale}");
}
