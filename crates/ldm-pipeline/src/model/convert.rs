//! Models from one format to another, tensor by tensor: no more than one is in memory.

use std::{collections::BTreeMap, path::Path};

use super::{
    FirstStageFiles, ModelFiles, compvis,
    files::{DIFFUSION_STEM, UNET, VAE, first_stage_names, unet_names},
    save::{conditioner_stem, write_configs, write_first_stage_config},
};
use crate::{
    atomic::{self, PartialDir},
    error::Error,
    weights::{self, Tensors},
};

/// Extensions of checkpoints.
const CHECKPOINTS: [&str; 3] = ["ckpt", "pt", "safetensors"];

/// Converts the model or autoencoder `source` to a CompVis checkpoint, if `destination` ends in `.ckpt`, `.pt` or `.safetensors`, or else to a
/// model directory; `half` in 16-bit floats. Returns the names of the tensors that were left out.
///
/// # Errors
/// If `destination` exists, `source` can't be read, the other format can't express it, or the result can't be written.
pub fn convert(
    source: &Path,
    yaml: Option<&Path>,
    destination: &Path,
    half: bool,
) -> Result<Vec<String>, Error> {
    let to_checkpoint = (destination.extension())
        .is_some_and(|extension| CHECKPOINTS.iter().any(|known| extension == *known));
    let yaml_beside = to_checkpoint.then(|| destination.with_extension("yaml"));
    for path in [Some(destination), yaml_beside.as_deref()]
        .into_iter()
        .flatten()
    {
        if path.exists() {
            return Err(Error::Request(format!(
                "{} exists: choose another destination, or remove it",
                path.display()
            )));
        }
    }
    match ModelFiles::open(source, yaml) {
        Ok(files) => {
            files.check()?;
            match to_checkpoint {
                true => compvis::write(&files, destination, half)?,
                false => write_directory(&files, destination, half)?,
            }
            Ok(files.skipped)
        }
        // Perhaps there is an autoencoder alone.
        Err(error @ Error::NoModel { .. }) => {
            let Ok(files) = FirstStageFiles::open(source, yaml) else {
                return Err(error);
            };
            files.check()?;
            match to_checkpoint {
                true => compvis::write_first_stage(&files, destination, half)?,
                false => write_first_stage(&files, destination, half)?,
            }
            Ok(files.skipped)
        }
        Err(error) => Err(error),
    }
}

fn write_directory(files: &ModelFiles, path: &Path, half: bool) -> Result<(), Error> {
    let partial = PartialDir::create(path)?;
    let dir = partial.path();
    write_configs(&files.configs, files.tokenizer.as_ref(), dir)?;
    let file = |folder: &str, stem: &str| dir.join(folder).join(format!("{stem}.safetensors"));
    if let Some(tensors) = &files.first_stage {
        write_weights(
            &file(VAE, DIFFUSION_STEM),
            first_stage_names(tensors)?,
            half,
        )?;
    }
    write_weights(&file(UNET, DIFFUSION_STEM), unet_names(&files.unet)?, half)?;
    if let Some((config, tensors)) = files.conditioner() {
        let path = file(config.folder(), conditioner_stem(config));
        write_weights(&path, tensors.clone(), half)?;
    }
    partial.commit()?;
    Ok(())
}

fn write_weights(path: &Path, tensors: Tensors, half: bool) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        atomic::create_dir(folder)?;
    }
    let tensors = if half { tensors.half() } else { tensors };
    Ok(weights::write(path, &tensors, &BTreeMap::new())?)
}

fn write_first_stage(files: &FirstStageFiles, path: &Path, half: bool) -> Result<(), Error> {
    let partial = PartialDir::create(path)?;
    write_first_stage_config(&files.config, partial.path())?;
    let file = partial.path().join(format!("{DIFFUSION_STEM}.safetensors"));
    write_weights(&file, first_stage_names(&files.tensors)?, half)?;
    partial.commit()?;
    Ok(())
}
