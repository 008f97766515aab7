//! The model that comes with the program's repository, and where it may be.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::files::INDEX;
use crate::error::Error;

/// Name of the model that is used where none is named: text to image, 64x64 pixels, trained on Twemoji.
pub const SHIPPED: &str = "twemoji-64";

/// Folder of models in the repository.
const MODELS: &str = "models";

/// Folders from a program upwards that may be its repository: `target/TRIPLE/release/` has four.
const LEVELS: usize = 4;

/// Names the one folder of models to look in.
const VARIABLE: &str = "LDM_MODELS";

/// Finds the directory of the model [`SHIPPED`].
///
/// It is looked for in `models/` of the current directory, of the program's folder and those above it (a program is built into its
/// repository's `target/`), beside an installed program in `../share/ldm/models/`, and in `models/` of the `source` that the program was
/// built from, in this order. Where the variable `LDM_MODELS` is set, it names the one folder to look in.
///
/// # Errors
/// If it is nowhere; the error names the places.
pub fn find_shipped(source: &Path) -> Result<PathBuf, Error> {
    first_with_model(
        match env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) {
            Some(folder) => vec![PathBuf::from(folder)],
            None => places(env::current_exe().ok().as_deref(), source),
        },
    )
}

/// Folders of models, the likeliest first.
fn places(program: Option<&Path>, source: &Path) -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(MODELS)];
    // Through links: an installed program is often one.
    let program = program.map(|path| path.canonicalize().unwrap_or_else(|_| path.into()));
    if let Some(folder) = program.as_deref().and_then(Path::parent) {
        places.extend(
            folder
                .ancestors()
                .take(LEVELS)
                .take_while(|folder| folder.parent().is_some())
                .map(|folder| folder.join(MODELS)),
        );
        if let Some(prefix) = folder.parent() {
            places.push(prefix.join("share/ldm").join(MODELS));
        }
    }
    let source = source.canonicalize().unwrap_or_else(|_| source.into());
    let source = source.join(MODELS);
    if !places.contains(&source) {
        places.push(source);
    }
    places
}

/// The first of these folders that has the model.
fn first_with_model(folders: Vec<PathBuf>) -> Result<PathBuf, Error> {
    let places: Vec<PathBuf> = (folders.into_iter())
        .map(|folder| folder.join(SHIPPED))
        .collect();
    match places.iter().find(|dir| dir.join(INDEX).is_file()) {
        Some(dir) => Ok(dir.clone()),
        None => Err(Error::NoShippedModel { places }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_model_is_found_from_a_built_an_installed_and_a_moved_program() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let found = |program: &str| {
            let program = root.join(program);
            first_with_model(places(Some(&program), &root.join("clone"))).unwrap()
        };
        let model = |path: &str| {
            let dir = root.join(path).join(SHIPPED);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(INDEX), "{}").unwrap();
            dir
        };
        let source = model("clone/models");
        assert_eq!(found("clone/target/release/ldm"), source);
        assert_eq!(found("elsewhere/bin/ldm"), source, "the source");
        let shared = model("usr/share/ldm/models");
        assert_eq!(found("usr/bin/ldm"), shared);
        let other = model("copy/models");
        assert_eq!(found("copy/target/release/ldm"), other, "its own first");
    }

    #[test]
    fn a_missing_model_names_every_place() {
        let dir = tempfile::tempdir().unwrap();
        let folders = vec![dir.path().join("a"), dir.path().join("b")];
        // A folder without a model in it is none.
        fs::create_dir_all(folders[0].join(SHIPPED)).unwrap();
        let error = first_with_model(folders.clone()).unwrap_err();
        for folder in folders {
            let place = folder.join(SHIPPED).display().to_string();
            assert!(error.to_string().contains(&place), "{error}");
        }
        assert!(error.help().unwrap().contains("--model"));
    }

    #[test]
    fn no_place_is_named_twice() {
        let places = places(Some(Path::new("/no/target/release/ldm")), Path::new("/no"));
        let mut distinct = places.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), places.len(), "{places:?}");
    }
}
