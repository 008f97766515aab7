//! Prompts in a text file, one a line.

use std::path::Path;

use crate::{error::Error, lines::read_lines};

/// Reads the prompts of a UTF-8 file: one a line, without blanks at its ends; empty lines and those that begin with `#` are passed over.
///
/// # Errors
/// If it can't be read, or holds none.
pub fn read_prompts(path: &Path) -> Result<Vec<String>, Error> {
    let lines = read_lines(path)?;
    let prompts: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    if prompts.is_empty() {
        return Err(Error::Malformed {
            path: path.into(),
            problem: "it has no prompts, one a line".into(),
        });
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_prompt_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.txt");
        std::fs::write(
            &path,
            "\u{feff}red heart\r\n\n  # a note\n  große Ängste \n",
        )
        .unwrap();
        assert_eq!(read_prompts(&path).unwrap(), ["red heart", "große Ängste"]);
        std::fs::write(&path, "# nothing\n\n").unwrap();
        let error = read_prompts(&path).unwrap_err().to_string();
        assert!(error.contains("prompts.txt"), "{error}");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read_prompts(&path).is_err());
    }
}
