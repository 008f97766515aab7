//! The paper's text transformer against diffusers'.

use burn::tensor::Device;
use ldm_text::{LdmBertConfig, Tokenizer};

use crate::common::{Tensors, assert_close, json, load};

#[test]
fn embeddings_equal_diffusers() {
    let device = Device::flex();
    let config: LdmBertConfig =
        serde_json::from_value(json("diffusers/ldm-text2im/bert/config.json")).unwrap();
    let mut model = config.init(&device);
    let weights = Tensors::open("diffusers/ldm-text2im/bert/model.safetensors");
    let unused = load(&mut model, weights.bytes(), &[]);
    assert!(unused.is_empty(), "{unused:?}");

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
    let reference = Tensors::open("diffusers/ldm-text2im/expected.safetensors");
    assert_close(
        "out.text.embeddings",
        model.forward(ids),
        reference.float::<3>("out.text.embeddings", &device),
        3e-5,
    );
}
