//! From TOML to a configuration, with errors that name the key and what it may have been meant to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{RunConfig, VAE, VQ};
use crate::error::ConfigError;

/// Keys of diffusers' files that name the file's own format.
const FORMAT_TAGS: [&str; 2] = ["_class_name", "model_type"];

impl RunConfig {
    /// Reads a configuration file and applies `overrides` of the form `stage1.training.steps=100`.
    ///
    /// # Errors
    /// If the file can't be read, isn't TOML, has an unknown, missing or wrong key, or the values don't fit together.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// [`load`](Self::load) from text; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As for [`load`](Self::load), except reading.
    pub fn parse(text: &str, name: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut table: toml::Table =
            toml::from_str(text).map_err(|source| ConfigError::Syntax {
                file: name.into(),
                source: Box::new(source),
            })?;
        for change in overrides {
            apply_override(&mut table, change)?;
        }
        let mut unknown = Vec::new();
        // An optional section has a `?` in its path.
        let mut note_unknown =
            |path: serde_ignored::Path| unknown.push(path.to_string().replace(".?", ""));
        let result = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(
            toml::Value::Table(table),
            &mut note_unknown,
        ));
        unknown.retain(|key| !FORMAT_TAGS.iter().any(|tag| key.ends_with(tag)));
        let config: Self = result.map_err(|error| {
            let path = error.path().to_string();
            malformed(name, &path, error.into_inner().message(), &unknown)
        })?;
        if let Some(key) = unknown.first() {
            return Err(ConfigError::UnknownKey {
                file: name.into(),
                key: key.clone(),
                suggestion: nearest(key, config.keys()),
            });
        }
        config
            .validate()
            .map_err(|(key, problem)| ConfigError::Value {
                file: name.into(),
                key: key.into(),
                problem,
            })?;
        Ok(config)
    }

    /// The configuration with all defaults written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a configuration is a TOML table")
    }

    /// The keys whose values differ from those of `now`, a line `key: before -> now` each.
    pub(crate) fn changes(&self, now: &Self) -> Vec<String> {
        let flat = |config: &Self| {
            let table = toml::Table::try_from(config).expect("a configuration is a TOML table");
            let mut values = BTreeMap::new();
            visit("", &table, &mut |key, value| {
                if !value.is_table() {
                    values.insert(key, value.to_string());
                }
            });
            values
        };
        let (before, now) = (flat(self), flat(now));
        let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        let shown =
            |value: Option<&String>| value.map_or("unset", |value| value.as_str()).to_owned();
        (keys.into_iter())
            .filter(|key| before.get(*key) != now.get(*key))
            .map(|key| {
                let [before, now] = [&before, &now].map(|values| shown(values.get(key)));
                format!("{key}: {before} -> {now}")
            })
            .collect()
    }

    /// All keys that are set, with their sections, and those of which only one can be.
    fn keys(&self) -> Vec<String> {
        let table = toml::Table::try_from(self).expect("a configuration is a TOML table");
        let mut keys = vec![VAE.to_owned(), VQ.to_owned()];
        visit("", &table, &mut |key, _| keys.push(key));
        keys
    }
}

/// The error for what serde says about the section or key at `path`. A misspelt key may be what makes another one missing.
fn malformed(file: &str, path: &str, message: &str, unknown: &[String]) -> ConfigError {
    let file = file.to_owned();
    let mut names = message.split('`').skip(1).step_by(2);
    let section = |name: &str| match path {
        "" | "." => name.to_owned(),
        _ => format!("{path}.{name}"),
    };
    if message.starts_with("unknown field")
        && let Some(key) = names.next()
    {
        let section = path.strip_suffix(key).unwrap_or(path).trim_end_matches('.');
        return ConfigError::UnknownKey {
            file,
            key: format!("{section}.{key}"),
            suggestion: nearest(key, names.map(str::to_owned))
                .map(|key| format!("{section}.{key}")),
        };
    }
    if message.starts_with("missing field")
        && let Some(missing) = names.next().map(section)
    {
        let misspelt = unknown
            .iter()
            .find(|key| nearest(key, [missing.clone()]).is_some());
        return match misspelt {
            Some(key) => ConfigError::UnknownKey {
                file,
                key: key.clone(),
                suggestion: Some(missing),
            },
            None => ConfigError::Value {
                file,
                key: missing,
                problem: "is missing".into(),
            },
        };
    }
    ConfigError::Value {
        file,
        key: path.into(),
        problem: format!("is wrong: {message}"),
    }
}

/// The known key nearest to a misspelt one, if any is near.
fn nearest(key: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    (known.into_iter())
        .map(|candidate| (strsim::damerau_levenshtein(&candidate, key), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 4.min(candidate.len() / 2))
        .map(|(_, candidate)| candidate)
}

/// Shows `see` every key of a table with all sections before it, and its value; what a section holds comes before the section.
fn visit(prefix: &str, table: &toml::Table, see: &mut impl FnMut(String, &toml::Value)) {
    for (key, value) in table {
        let key = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        if let toml::Value::Table(inner) = value {
            visit(&key, inner, see);
        }
        see(key, value);
    }
}

/// Sets `a.b.c` to the value after the equals sign, a TOML value or else a bare string.
fn apply_override(table: &mut toml::Table, change: &str) -> Result<(), ConfigError> {
    let malformed = || ConfigError::Override {
        text: change.into(),
    };
    let (key, value) = change.split_once('=').ok_or_else(malformed)?;
    let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.trim().into()));
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path
        .pop()
        .filter(|last| !last.is_empty())
        .ok_or_else(malformed)?;
    let mut table = table;
    for part in path {
        table = table
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(malformed)?;
    }
    table.insert(last.into(), value);
    Ok(())
}
