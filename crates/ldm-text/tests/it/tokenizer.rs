//! Token ids and masks against transformers' tokenizers.

use burn::tensor::{Device, Int, Tensor, TensorData};
use ldm_text::{Tokenizer, TokenizerConfig, TokenizerError};
use serde_json::Value;

use crate::common::{fixture, json};

/// The cases cover accents, CJK, the empty text, over-long ones, control characters, emoji and special tokens.
fn assert_ids(cases: &Value) {
    let tokenizer = Tokenizer::bert();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 6);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, expected.len()), expected, "{text:?}");
    }
}

/// Compares ids and masks of texts that were padded or cut to `length`.
fn assert_rows(tokenizer: &Tokenizer, rows: &Value, length: usize) {
    let rows = rows.as_array().unwrap();
    let texts: Vec<&str> = rows
        .iter()
        .map(|row| row["text"].as_str().unwrap())
        .collect();
    let (ids, mask) = tokenizer.encode_batch_masked(&texts, length, &Device::flex());
    let found = |tensor: Tensor<2, Int>| tensor.into_data().convert::<i64>();
    let expected = |key: &str| {
        let values: Vec<i64> = rows
            .iter()
            .flat_map(|row| row[key].as_array().unwrap())
            .map(|value| value.as_i64().unwrap())
            .collect();
        TensorData::new(values, [rows.len(), length])
    };
    found(ids).assert_eq(&expected("ids"), true);
    found(mask.int()).assert_eq(&expected("mask"), true);
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
fn ids_and_masks_equal_transformers_for_a_published_model() {
    let expected = json("diffusers/bert-minilm/expected.json");
    assert_rows(&Tokenizer::bert(), &expected["prompts"], 77);
}

#[test]
fn folders_say_how_text_is_treated() {
    let cases = json("transformers/bert-tiny/expected.json");
    let cases = cases.as_object().unwrap();
    assert_eq!(cases.len(), 4);
    for (name, case) in cases {
        let dir = tempfile::tempdir().unwrap();
        let vocab = fixture("transformers/bert-tiny/vocab.txt");
        std::fs::copy(vocab, dir.path().join("vocab.txt")).unwrap();
        std::fs::write(
            dir.path().join("tokenizer_config.json"),
            case["config"].to_string(),
        )
        .unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let length = tokenizer.config().model_max_length.unwrap();
        println!("{name}");
        assert_rows(&tokenizer, &case["texts"], length);
    }
}

#[test]
fn a_tokenizer_json_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let file = fixture("transformers/bert-tiny/tokenizer.json");
    std::fs::copy(file, dir.path().join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let cases = json("transformers/bert-tiny/expected.json");
    assert_rows(&tokenizer, &cases["cased"]["texts"], 12);
    assert_eq!(tokenizer.config().model_max_length, None);
    let vocab = std::fs::read_to_string(fixture("transformers/bert-tiny/vocab.txt")).unwrap();
    assert_eq!(tokenizer.vocab(), vocab);
}

#[test]
fn written_settings_are_transformers() {
    // The limit is transformers' word for none.
    let text = r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": false, "strip_accents": true,
        "model_max_length": 1000000000000000019884624838656, "never_split": null}"#;
    let config: TokenizerConfig = serde_json::from_str(text).unwrap();
    assert_eq!(
        serde_json::to_value(&config).unwrap(),
        serde_json::json!({
            "tokenizer_class": "BertTokenizer", "do_lower_case": false, "strip_accents": true,
            "tokenize_chinese_chars": true,
        })
    );
}

#[test]
fn wrong_folders_are_named() {
    let wrong = |files: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Tokenizer::from_dir(dir.path()).unwrap_err()
    };
    let json = |model: &str| format!(r#"{{"model": {{"type": {model}}}}}"#);

    let error = wrong(&[]);
    assert!(
        matches!(&error, TokenizerError::Read { path, .. } if path.ends_with("vocab.txt")),
        "{error}"
    );
    let error = wrong(&[("tokenizer_config.json", r#"{"do_lower_case": 3}"#)]);
    assert!(
        matches!(&error, TokenizerError::Json { path, .. } if path.ends_with("tokenizer_config.json")),
        "{error}"
    );
    for (text, word) in [
        (json(r#""BPE", "vocab": {"a": 0}"#), "`BPE`"),
        (json(r#""WordPiece", "vocab": {"a": 0, "b": 2}"#), "id 2"),
        (
            json(r#""WordPiece", "vocab": {"a": 0, "b\n": 1}"#),
            "line's end",
        ),
    ] {
        let error = wrong(&[("tokenizer.json", &text)]);
        assert!(
            matches!(&error, TokenizerError::Unsupported { .. })
                && error.to_string().contains(word)
                && error.to_string().contains("tokenizer.json"),
            "{error}"
        );
    }
    let error = wrong(&[(
        "tokenizer.json",
        &json(r#""WordPiece", "vocab": {"[PAD]": 0}"#),
    )]);
    assert!(
        matches!(&error, TokenizerError::MissingToken { origin, .. } if origin.ends_with("tokenizer.json")),
        "{error}"
    );
}
