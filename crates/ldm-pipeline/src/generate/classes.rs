//! Classes by their names.

use crate::{error::Error, model::ModelFacts};

/// Likeness from which a name counts as a misspelling of another, from 0 to 1.
const SIMILAR: f64 = 0.75;

impl ModelFacts {
    /// The number of a class that is given by its name, where the model has names, or by its number. A name is as it is written in
    /// `ldm.json`, or in upper or lower case, whole or one of several between commas. A name that is a number, such as that of a folder
    /// `10`, comes before the number.
    ///
    /// Whether there is a class of a number is for [`LatentDiffusion::check`](crate::model::LatentDiffusion::check) to say.
    ///
    /// # Errors
    /// If no class, or more than one, has that name.
    pub fn class(&self, text: &str) -> Result<usize, Error> {
        let refuse = |problem: String| Err(Error::Request(problem));
        let wanted = text.to_lowercase();
        let is_like = |name: &str| {
            let name = name.to_lowercase();
            name == wanted || name.split(',').any(|part| part.trim() == wanted)
        };
        let exactly = self.numbers(|name| name == text);
        match (&exactly[..], text.parse()) {
            (&[number], _) => return Ok(number),
            ([], Ok(number)) => return Ok(number),
            _ => {}
        }
        let found = match exactly.is_empty() {
            true => self.numbers(is_like),
            false => exactly,
        };
        match found[..] {
            [] => refuse(self.no_such_class(text)),
            [number] => Ok(number),
            _ => refuse(format!(
                "\"{text}\" may be any of the classes {found:?}: give a number"
            )),
        }
    }

    /// The name of a class, where it has one.
    pub fn class_name(&self, number: usize) -> Option<&str> {
        self.classes.get(number).map(String::as_str)
    }

    /// The classes of such names.
    fn numbers(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<usize> {
        (0..self.classes.len())
            .filter(|&number| is_wanted(&self.classes[number]))
            .collect()
    }

    fn no_such_class(&self, text: &str) -> String {
        let names = &self.classes;
        if names.is_empty() {
            return format!(
                "there is no class \"{text}\": this model has no names of its classes, give a number"
            );
        }
        let wanted = text.to_lowercase();
        let likeness = |name: &String| strsim::jaro_winkler(&name.to_lowercase(), &wanted);
        let nearest = (names.iter()).max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        match nearest.filter(|name| likeness(name) >= SIMILAR) {
            Some(name) => format!("there is no class \"{text}\": did you mean \"{name}\"?"),
            None => format!(
                "there is no class \"{text}\": the model's classes are {}",
                listed(names)
            ),
        }
    }
}

/// The first names, and how many there are beyond.
pub(crate) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(names: &[&str]) -> ModelFacts {
        ModelFacts {
            classes: names.iter().map(|&name| name.into()).collect(),
            ..ModelFacts::default()
        }
    }

    #[test]
    fn a_name_that_is_a_number_comes_before_the_number() {
        // As folders are sorted.
        let named = facts(&["0", "1", "10", "2"]);
        assert_eq!(named.class("10").unwrap(), 2);
        assert_eq!(named.class("2").unwrap(), 3);
        assert_eq!(named.class("3").unwrap(), 3, "no name, so a number");
        assert_eq!(facts(&[]).class("10").unwrap(), 10);
        // Two of one name are told apart by their numbers alone.
        let twice = facts(&["crane", "7", "7", "crane"]);
        let error = twice.class("7").unwrap_err().to_string();
        assert!(error.contains("[1, 2]"), "{error}");
        assert_eq!(twice.class("1").unwrap(), 1);
    }
}
