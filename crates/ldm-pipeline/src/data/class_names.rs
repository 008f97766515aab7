//! What the class folders of a data set are called.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use super::error::DataError;
use crate::lines::lines;

/// The file in the data folder that lists its classes.
pub const CLASS_FILE: &str = "classes.txt";

/// The classes of a data set, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassNames {
    /// The folder of each class, or what its samples in a tar file have as their class.
    pub folders: Vec<String>,
    /// What each class is called; several names of it stand between commas.
    pub names: Vec<String>,
}

impl ClassNames {
    /// Reads `classes.txt` in the data folder, if there is one: a line `FOLDER NAME` for each class, from number 0 on, such as
    /// `n01440764 tench, Tinca tinca`. The folder ends at the first tab, or without one at the first space; without a name it is the name.
    /// Empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// If the file can't be read, or lists a folder twice.
    pub fn load(root: &Path) -> Result<Option<Self>, DataError> {
        let path = root.join(CLASS_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(source) => return Err(DataError::Read { path, source }),
        };
        let mut classes = Self::default();
        let mut seen = BTreeSet::new();
        for (number, line) in lines(&text) {
            let (folder, name) = (line.split_once('\t'))
                .or_else(|| line.split_once(' '))
                .unwrap_or((line, line));
            if !seen.insert(folder.to_owned()) {
                return Err(DataError::Classes {
                    path,
                    line: number,
                    reason: format!("\"{folder}\" is listed above already"),
                });
            }
            classes.folders.push(folder.to_owned());
            classes.names.push(name.trim().to_owned());
        }
        Ok(Some(classes))
    }

    /// The classes that folders make by themselves: numbered, and called, by their names.
    pub fn of_folders<'a>(folders: impl IntoIterator<Item = &'a str>) -> Self {
        let folders: BTreeSet<&str> = folders.into_iter().collect();
        let folders: Vec<String> = folders.into_iter().map(str::to_owned).collect();
        Self {
            names: folders.clone(),
            folders,
        }
    }

    /// The number of each class by its folder.
    pub fn numbers(&self) -> BTreeMap<&str, usize> {
        self.folders.iter().map(String::as_str).zip(0..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Option<ClassNames>, DataError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CLASS_FILE), text).unwrap();
        ClassNames::load(dir.path())
    }

    #[test]
    fn lines_are_classes_in_their_order() {
        // The first lines of ImageNet's LOC_synset_mapping.txt, and the other forms.
        let text = "\u{feff}n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\r\n\n# more\nmy cats\tcat\nplain\n";
        let classes = load(text).unwrap().unwrap();
        assert_eq!(
            classes.folders,
            ["n01440764", "n01443537", "my cats", "plain"]
        );
        let names = [
            "tench, Tinca tinca",
            "goldfish, Carassius auratus",
            "cat",
            "plain",
        ];
        assert_eq!(classes.names, names);
        assert_eq!(classes.numbers()["my cats"], 2);

        let error = load("a b\n\na c\n").unwrap_err().to_string();
        assert!(
            error.contains("classes.txt, line 3") && error.contains("\"a\""),
            "{error}"
        );
    }

    #[test]
    fn without_a_file_folders_are_classes_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ClassNames::load(dir.path()).unwrap(), None);
        let shard = dir.path().join("a.tar");
        fs::write(&shard, "").unwrap();
        assert_eq!(ClassNames::load(&shard).unwrap(), None);
        let classes = ClassNames::of_folders(["b", "a", "b"]);
        assert_eq!(
            (classes.folders, classes.names),
            (
                vec!["a".into(), "b".into()],
                vec!["a".to_owned(), "b".into()]
            )
        );
    }
}
