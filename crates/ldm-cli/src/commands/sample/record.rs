//! What the files of images tell of the request that made them, as JSON for their text chunk.

use std::path::Path;

use ldm_pipeline::diffusion::SamplerKind;
use serde_json::{Map, Value, json};

use super::images::Images;
use crate::args::SampleArgs;

/// The records of all images of a call.
pub(super) struct Records<'a> {
    /// What all have in common.
    common: Map<String, Value>,
    images: &'a Images,
}

impl<'a> Records<'a> {
    pub(super) fn new(
        args: &SampleArgs,
        model: &Path,
        sampler: SamplerKind,
        images: &'a Images,
    ) -> Self {
        let common = object(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": model,
            "prompt": null,
            "class": null,
            "class_name": null,
            "semantic": null,
            "negative": args.negative,
            "palette": args.palette,
            "init_image": args.init_image,
            "strength": args.strength,
            "mask": args.mask,
            "sampler": sampler.name(),
            "steps": args.steps,
            "eta": args.eta,
            "guidance": args.guidance,
            "guidance_rescale": args.guidance_rescale,
            "init_latents": args.init_latents,
            "width": args.width,
            "height": args.height,
        }));
        Self { common, images }
    }

    /// Of image `index`.
    pub(super) fn image(&self, index: usize) -> String {
        let mut record = self.common.clone();
        record.extend(self.own(index));
        Value::Object(record).to_string()
    }

    /// Of a sheet of the first `count` images: `images` lists what each has of its own.
    pub(super) fn sheet(&self, count: usize) -> String {
        let mut record = self.common.clone();
        let images: Vec<Value> = (0..count)
            .map(|index| Value::Object(self.own(index)))
            .collect();
        record.insert("images".into(), images.into());
        Value::Object(record).to_string()
    }

    /// The caption of image `index`.
    pub(super) fn label(&self, index: usize) -> String {
        self.images.label(index)
    }

    fn own(&self, index: usize) -> Map<String, Value> {
        let (subject, key) = self.images.from(index);
        let mut own = subject.record.clone();
        own.insert("seed".into(), key.seed.into());
        own.insert("image".into(), key.index.into());
        if let Some((subject, key, share)) = self.images.to(index) {
            let mut to = subject.map_or(Map::new(), |subject| subject.record.clone());
            if let Some(key) = key {
                to.insert("seed".into(), key.seed.into());
                to.insert("image".into(), key.index.into());
            }
            own.insert("to".into(), to.into());
            own.insert("share".into(), share.into());
        }
        own
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => unreachable!("written as an object"),
    }
}
