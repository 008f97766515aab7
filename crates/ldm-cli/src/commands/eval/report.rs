//! What was measured, as a table and as JSON.

use std::path::Path;

use ldm_eval::{Comparison, MeanAndDeviation};
use ldm_pipeline::{Error, atomic};
use serde_json::{Map, Value, json};

use super::network::Family;
use crate::output::print;

/// Measures in the order in which they are shown, and what they were taken of.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<Row>,
    values: Map<String, Value>,
}

struct Row {
    name: String,
    value: String,
    remark: String,
}

impl Report {
    /// A report of what `kind` names, about the facts given.
    pub(super) fn new(kind: &str, facts: Value) -> Self {
        let mut values = Map::new();
        values.insert("measured".into(), kind.into());
        if let Value::Object(facts) = facts {
            values.extend(facts);
        }
        Self {
            rows: Vec::new(),
            values,
        }
    }

    /// A number: `key` in the JSON, `name` in the table.
    pub(super) fn number(&mut self, key: &str, name: &str, value: f64, remark: &str) {
        self.values.insert(key.into(), json!(value));
        self.rows.push(Row {
            name: name.into(),
            value: shown(value),
            remark: remark.into(),
        });
    }

    /// How many of something there are.
    pub(super) fn count(&mut self, key: &str, name: &str, count: usize, remark: &str) {
        self.values.insert(key.into(), json!(count));
        self.rows.push(Row {
            name: name.into(),
            value: count.to_string(),
            remark: remark.into(),
        });
    }

    /// A number with its deviation, which is `key` and `key_std` in the JSON.
    pub(super) fn spread(&mut self, key: &str, name: &str, value: MeanAndDeviation, remark: &str) {
        let deviation = format!("± {}", shown(value.deviation));
        let remark = match remark {
            "" => deviation,
            remark => format!("{deviation}, {remark}"),
        };
        self.number(key, name, value.mean, &remark);
        (self.values).insert(format!("{key}_std"), json!(value.deviation));
    }

    /// All that a comparison found, under the names of the features' network; `rFID` in place of `FID` of reconstructions.
    pub(super) fn comparison(&mut self, found: &Comparison, family: Family, reconstructed: bool) {
        let (key, name) = match family {
            Family::Inception => ("", ""),
            Family::NarrowInception => ("narrow_", "narrow "),
            Family::Vgg => ("vgg_", "VGG-"),
        };
        let r = if reconstructed { "r" } else { "" };
        let [frechet, kernel] = match family {
            Family::Vgg => ["FD", "KD"],
            _ => ["FID", "KID"],
        };
        let named = |what: &str| {
            (
                format!("{key}{r}{}", what.to_lowercase()),
                format!("{r}{name}{what}"),
            )
        };
        let (fd_key, fd_name) = named(frechet);
        self.number(&fd_key, &fd_name, found.frechet, "");
        if let Some(value) = found.spatial_frechet {
            let (key, name) = named("sFID");
            self.number(&key, &name, value, "");
        }
        if let (Some(value), Some(subsets)) = (found.kernel, found.subsets) {
            let (key, name) = named(kernel);
            let remark = match subsets.count {
                1 => format!("one subset of {}", subsets.size),
                count => format!("{count} subsets of {}", subsets.size),
            };
            self.spread(&key, &name, value, &remark);
            (self.values).insert(format!("{key}_subset_size"), json!(subsets.size));
        }
        if let Some(manifold) = found.manifold {
            for (what, value) in [
                ("precision", manifold.precision),
                ("recall", manifold.recall),
            ] {
                let (key, name) = named(what);
                self.number(&key, &name, value, "");
            }
        }
        if let Some(value) = found.inception_score {
            let key = format!("{key}{r}inception_score");
            let name = format!("{r}{name}Inception Score");
            self.spread(&key, &name, value, "10 splits");
        }
    }

    /// Prints the table, and writes the JSON if there is a file for it.
    pub(super) fn finish(self, file: Option<&Path>) -> Result<(), Error> {
        if let Some(path) = file {
            let text = serde_json::to_string_pretty(&self.values).expect("plain values");
            atomic::write_file(path, format!("{text}\n").as_bytes())?;
        }
        let width = |of: fn(&Row) -> &str| {
            let widths = self.rows.iter().map(|row| of(row).chars().count());
            widths.max().unwrap_or(0)
        };
        let (names, values) = (width(|row| &row.name), width(|row| &row.value));
        for Row {
            name,
            value,
            remark,
        } in &self.rows
        {
            let line = format!("{name:names$}  {value:>values$}  {remark}");
            print(line.trim_end())?;
        }
        Ok(())
    }
}

/// Six digits.
fn shown(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !size.is_finite() => value.to_string(),
        size if !(1e-4..1e6).contains(&size) => format!("{value:.4e}"),
        size => {
            let decimals = (5 - size.log10().floor() as i32).clamp(0, 8) as usize;
            format!("{value:.decimals$}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_six_digits() {
        for (value, text) in [
            (0.0, "0"),
            (12.345_678_9, "12.3457"),
            (0.001_234_567_8, "0.00123457"),
            (-1_234.567_89, "-1234.57"),
            (1.5e-7, "1.5000e-7"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(shown(value), text);
        }
    }
}
