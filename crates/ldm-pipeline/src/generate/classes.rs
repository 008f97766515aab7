//! Classes by their names.

use crate::{error::Error, model::ModelConfigs};

/// Likeness from which a name counts as a misspelling of another, from 0 to 1.
const SIMILAR: f64 = 0.75;

impl ModelConfigs {
    /// The number of a class that is given by its number, or by its name where the model has names: as it is written in `ldm.json`, in
    /// upper or lower case, whole or one of several between commas.
    ///
    /// Whether there is a class of that number is for [`LatentDiffusion::check`](crate::model::LatentDiffusion::check) to say.
    ///
    /// # Errors
    /// If no class, or more than one, has that name.
    pub fn class(&self, text: &str) -> Result<usize, Error> {
        if let Ok(number) = text.parse() {
            return Ok(number);
        }
        let refuse = |problem: String| Err(Error::Request(problem));
        let names = &self.facts.classes;
        if names.is_empty() {
            return refuse(format!(
                "there is no class \"{text}\": this model has no names of its classes, give a number"
            ));
        }
        let wanted = text.to_lowercase();
        let is_like = |name: &str| {
            let name = name.to_lowercase();
            name == wanted || name.split(',').any(|part| part.trim() == wanted)
        };
        let numbers = |is_wanted: &dyn Fn(&str) -> bool| -> Vec<usize> {
            (0..names.len())
                .filter(|&number| is_wanted(&names[number]))
                .collect()
        };
        let exactly = numbers(&|name| name == text);
        let found = match exactly.is_empty() {
            true => numbers(&is_like),
            false => exactly,
        };
        match found[..] {
            [] => {}
            [number] => return Ok(number),
            _ => {
                return refuse(format!(
                    "\"{text}\" may be any of the classes {found:?}: give a number"
                ));
            }
        }
        let likeness = |name: &String| strsim::jaro_winkler(&name.to_lowercase(), &wanted);
        let nearest = (names.iter()).max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        refuse(match nearest.filter(|name| likeness(name) >= SIMILAR) {
            Some(name) => format!("there is no class \"{text}\": did you mean \"{name}\"?"),
            None => format!(
                "there is no class \"{text}\": the model's classes are {}",
                listed(names)
            ),
        })
    }

    /// The name of a class, where it has one.
    pub fn class_name(&self, number: usize) -> Option<&str> {
        self.facts.classes.get(number).map(String::as_str)
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
