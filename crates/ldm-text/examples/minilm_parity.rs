//! Compares a published BERT with what transformers computes with it; see scripts/check-minilm.sh.

use std::{error::Error, fs, path::Path, process::ExitCode};

use burn::tensor::{Device, Tensor, TensorData};
use burn_store::{KeyRemapper, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use ldm_text::{BertConfig, Tokenizer, weights};
use regex::RegexSet;
use safetensors::SafeTensors;

const LENGTH: usize = 77;
const TOLERANCE: f32 = 1e-4;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("usage: minilm_parity MODEL_FOLDER");
        return ExitCode::from(2);
    };
    match compare(Path::new(&dir)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all hidden states are within the tolerance.
fn compare(dir: &Path) -> Result<bool, Box<dyn Error>> {
    let device = Device::flex();
    let config: BertConfig = serde_json::from_slice(&fs::read(dir.join("config.json"))?)?;
    config.validate()?;
    let mut model = config.init(&device);
    let mut store = SafetensorsStore::from_file(dir.join("model.safetensors"))
        .with_from_adapter(PyTorchToBurnAdapter)
        .remap(KeyRemapper::from_pattern_iter(
            weights::BERT_KEY_MAP.iter().copied(),
        )?);
    let loaded = model.load_from(&mut store)?;
    let skip = RegexSet::new(weights::BERT_SKIP)?;
    let unknown = loaded.unused.iter().find(|name| !skip.is_match(name));
    if let Some(name) = unknown.or(loaded.missing.first().map(|(name, _)| name)) {
        return Err(format!("`{name}` is missing or unknown").into());
    }

    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/diffusers/bert-minilm");
    let file = fs::read(fixtures.join("expected.safetensors"))?;
    let expected = SafeTensors::deserialize(&file)?;
    let cases: serde_json::Value =
        serde_json::from_slice(&fs::read(fixtures.join("expected.json"))?)?;
    let texts: Vec<&str> = (cases["prompts"].as_array().into_iter().flatten())
        .filter_map(|prompt| prompt["text"].as_str())
        .collect();

    let tokenizer = Tokenizer::from_dir(dir)?;
    let mut all_close = true;
    let mut check = |name: &str, found: Tensor<3>| -> Result<(), Box<dyn Error>> {
        let view = expected.tensor(name)?;
        let values: Vec<f32> = (view.data().chunks_exact(4))
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        let data = TensorData::new(values, view.shape().to_vec());
        let expected = Tensor::<3>::from_data(data, &device);
        let scale = expected.clone().abs().max().into_scalar::<f32>().max(1.0);
        let error = (found - expected).abs().max().into_scalar::<f32>();
        // Written so that NaN isn't close.
        let close = error <= TOLERANCE * scale;
        let verdict = if close { "ok" } else { "FAILED" };
        println!("{name}: error {error:.1e} at scale {scale:.2}, {verdict}");
        all_close &= close;
        Ok(())
    };
    for (index, text) in texts.iter().enumerate() {
        let ids = tokenizer.encode_batch(&[text], tokenizer.count(text), &device);
        check(&format!("out.hidden.{index}"), model.forward(ids, None))?;
    }
    let (ids, mask) = tokenizer.encode_batch_masked(&texts, LENGTH, &device);
    let padded = model.forward(ids, Some(mask)).narrow(1, 0, 16);
    check("out.padded", padded)?;
    Ok(all_close)
}
