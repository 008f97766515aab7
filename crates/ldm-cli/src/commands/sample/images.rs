//! Which images the options ask for.

use std::path::{Path, PathBuf};

use ldm_pipeline::{
    Error,
    generate::{Condition, LabelMap, NoiseKey, Palette, Series, read_prompts},
    model::{ModelFacts, ModelFiles},
};
use serde_json::{Map, Value};

use crate::args::{Grid, MAX_IMAGES, SampleArgs};

/// The images of a call, in their order.
pub(super) struct Images {
    pub(super) subjects: Vec<Subject>,
    /// Of each subject.
    pub(super) keys: Vec<NoiseKey>,
    /// Images on the way from one subject or key to another, in place of each subject with each key.
    frames: Option<usize>,
}

/// What some of the images show.
pub(super) struct Subject {
    pub(super) condition: Condition,
    /// For captions.
    pub(super) label: String,
    /// What the files of its images say of it.
    pub(super) record: Map<String, Value>,
}

impl Subject {
    fn new<const N: usize>(
        condition: Condition,
        label: impl Into<String>,
        record: [(&str, Value); N],
    ) -> Self {
        Self {
            condition,
            label: label.into(),
            record: record
                .map(|(key, value)| (key.into(), value))
                .into_iter()
                .collect(),
        }
    }
}

impl Images {
    /// The images that the options ask of a model. `held` is the number of those for which there is noise already.
    pub(super) fn new(
        args: &SampleArgs,
        files: &ModelFiles,
        held: Option<usize>,
    ) -> Result<Self, Error> {
        let subjects = subjects(args, files)?;
        let each = match args.count {
            _ if !args.seeds.is_empty() => args.seeds.len(),
            Some(count) => count as usize,
            None => count(args, subjects.len(), held)?,
        };
        let frames = args.interpolate.map(|frames| frames as usize);
        check_count(args, frames.unwrap_or(subjects.len().saturating_mul(each)))?;
        let keys = if args.seeds.is_empty() {
            let key = |index| NoiseKey {
                seed: args.seed,
                index,
            };
            (0..each as u64).map(key).collect()
        } else {
            let key = |&seed| NoiseKey { seed, index: 0 };
            args.seeds.iter().map(key).collect()
        };
        Ok(Self {
            subjects,
            keys,
            frames,
        })
    }

    pub(super) fn series(&self) -> Result<Series, Error> {
        let conditions: Vec<Condition> = (self.subjects.iter())
            .map(|subject| subject.condition.clone())
            .collect();
        match self.frames {
            Some(frames) => Series::between(&conditions, &self.keys, frames),
            None => Ok(Series::product(&conditions, &self.keys)),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.frames.unwrap_or(self.subjects.len() * self.keys.len())
    }

    pub(super) fn interpolated(&self) -> bool {
        self.frames.is_some()
    }

    /// What image `index` shows and its noise; of an interpolation those it comes from.
    pub(super) fn from(&self, index: usize) -> (&Subject, NoiseKey) {
        match self.frames {
            Some(_) => (&self.subjects[0], self.keys[0]),
            None => (
                &self.subjects[index / self.keys.len()],
                self.keys[index % self.keys.len()],
            ),
        }
    }

    /// Where image `index` of an interpolation goes to, and how far it has come; the subject and the noise only where they change.
    pub(super) fn to(&self, index: usize) -> Option<(Option<&Subject>, Option<NoiseKey>, f64)> {
        let frames = self.frames?;
        Some((
            self.subjects.get(1),
            self.keys.get(1).copied(),
            Series::share(index, frames),
        ))
    }

    /// The caption of image `index`, what sets it apart from the others of its subject first: a long prompt is cut.
    pub(super) fn label(&self, index: usize) -> String {
        let (subject, key) = self.from(index);
        if let Some((to, _, share)) = self.to(index) {
            let ends = match to {
                Some(to) => format!("{} - {}", subject.label, to.label),
                None => subject.label.clone(),
            };
            return joined(&format!("{:.0}%", 100.0 * share), &ends);
        }
        let apart = match &self.keys[..] {
            [_] => String::new(),
            keys if keys.iter().all(|other| other.seed == key.seed) => key.index.to_string(),
            _ => format!("seed {}", key.seed),
        };
        joined(&apart, &subject.label)
    }

    /// Columns of a sheet of them: as asked, or a row for each subject, or as square as can be.
    pub(super) fn columns(&self, grid: Option<Grid>) -> usize {
        match grid {
            Some(grid) => grid.columns,
            None if self.frames.is_none() && self.subjects.len() > 1 && self.keys.len() > 1 => {
                self.keys.len()
            }
            None => (1..)
                .find(|side| side * side >= self.count())
                .unwrap_or_default(),
        }
    }
}

fn joined(first: &str, second: &str) -> String {
    match first.is_empty() || second.is_empty() {
        true => format!("{first}{second}"),
        false => format!("{first}, {second}"),
    }
}

/// Whether so many images can be drawn, and fit into the sheet.
fn check_count(args: &SampleArgs, count: usize) -> Result<(), Error> {
    let refuse = |problem: String| Err(Error::Request(problem));
    if count == 0 {
        return refuse("the latents hold no image".into());
    }
    if count as u64 > MAX_IMAGES {
        return refuse(format!(
            "{count} images are too many: at most {MAX_IMAGES} are drawn at once"
        ));
    }
    match args.grid.flatten() {
        Some(Grid { columns, rows }) if columns.saturating_mul(rows) < count => refuse(format!(
            "{count} images don't fit into the {columns} x {rows} of --grid"
        )),
        _ => Ok(()),
    }
}

/// Images of each subject where no option says how many.
fn count(args: &SampleArgs, subjects: usize, held: Option<usize>) -> Result<usize, Error> {
    match (args.grid, held) {
        (_, Some(held)) if held % subjects == 0 => Ok(held / subjects),
        (Some(Some(Grid { columns, rows })), None) if args.interpolate.is_none() => {
            let cells = columns.saturating_mul(rows);
            match cells / subjects {
                count if count > 0 && cells % subjects == 0 => Ok(count),
                _ => Err(Error::Request(format!(
                    "the {columns} x {rows} of --grid can't be shared out evenly to {subjects} prompts, classes or masks: say with --count how many of each"
                ))),
            }
        }
        _ => Ok(1),
    }
}

/// What the options say is to be drawn.
fn subjects(args: &SampleArgs, files: &ModelFiles) -> Result<Vec<Subject>, Error> {
    let prompt = |text: &String| {
        let record = [("prompt", text.as_str().into())];
        Subject::new(Condition::Prompt(text.clone()), text, record)
    };
    let facts = &files.configs.facts;
    Ok(if let Some(path) = &args.prompts {
        read_prompts(path)?.iter().map(prompt).collect()
    } else if args.prompt.is_some() {
        args.prompt.iter().chain(&args.to).map(prompt).collect()
    } else if !args.class.is_empty() {
        (args.class.iter())
            .map(|class| by_class(facts, class))
            .collect::<Result<_, _>>()?
    } else if !args.semantic.is_empty() {
        let palette = (args.palette.as_deref()).map(Palette::load).transpose()?;
        let own = (!facts.palette.is_empty()).then(|| Palette::new(facts.palette.clone()));
        let load = |path: &PathBuf| match &palette {
            Some(palette) => LabelMap::load_painted(path, palette),
            None => LabelMap::load(path, own.as_ref(), &facts.label_mapping),
        };
        (args.semantic.iter())
            .map(|path| Ok(scene(path, load(path)?)))
            .collect::<Result<_, Error>>()?
    } else if files.tokenizer.is_some() {
        return Err(Error::Request(
            "this model draws what a prompt says: give one".into(),
        ));
    } else {
        vec![Subject::new(Condition::Nothing, "", [])]
    })
}

fn by_class(facts: &ModelFacts, class: &str) -> Result<Subject, Error> {
    let number = facts.class(class)?;
    let name = facts.class_name(number);
    let label = name.map_or_else(|| format!("class {number}"), str::to_owned);
    let record = [("class", number.into()), ("class_name", name.into())];
    Ok(Subject::new(Condition::Class(number), label, record))
}

fn scene(path: &Path, map: LabelMap) -> Subject {
    let label = path.file_name().unwrap_or_default().to_string_lossy();
    let record = [("semantic", path.display().to_string().into())];
    Subject::new(Condition::Labels(map), label, record)
}
