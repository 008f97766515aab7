//! Labels as masks store them, and as a model counts them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Palette;

/// What becomes of some of a mask's values: `255 = 182` makes COCO-Stuff's "unlabelled" the label after its last one. A value that isn't
/// named is its own label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, u32>", into = "BTreeMap<String, u32>")]
pub struct LabelMapping {
    labels: BTreeMap<u32, u32>,
}

impl LabelMapping {
    /// Whether every value is its own label.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The mapped values with their labels.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.labels.iter().map(|(&value, &label)| (value, label))
    }

    /// The label of a value.
    pub fn label(&self, value: u32) -> u32 {
        self.labels.get(&value).copied().unwrap_or(value)
    }

    /// The colours of labels, from those of values: a label that others are mapped to has the colour of the first of them.
    pub(crate) fn palette(&self, of_values: &Palette) -> Palette {
        let colors = of_values.colors();
        let value = |label: u32| {
            let mapped = self.iter().find(|&(_, to)| to == label);
            mapped.map_or(label, |(value, _)| value)
        };
        let colors =
            (0..colors.len() as u32).map_while(|label| colors.get(value(label) as usize).copied());
        Palette::new(colors.collect())
    }
}

impl TryFrom<BTreeMap<String, u32>> for LabelMapping {
    type Error = String;

    // Keys of TOML and JSON are texts.
    fn try_from(labels: BTreeMap<String, u32>) -> Result<Self, String> {
        let number = |(value, label): (String, u32)| match value.parse() {
            Ok(value) => Ok((value, label)),
            Err(_) => Err(format!(
                "\"{value}\" is no value of a mask: a mapping is like {{ 255 = 182, 13 = 0 }}"
            )),
        };
        Ok(Self {
            labels: labels.into_iter().map(number).collect::<Result<_, _>>()?,
        })
    }
}

impl From<LabelMapping> for BTreeMap<String, u32> {
    fn from(mapping: LabelMapping) -> Self {
        (mapping.labels.into_iter())
            .map(|(value, label)| (value.to_string(), label))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_labels_once() {
        let mapping: LabelMapping = toml::from_str("255 = 2\n2 = 0\n").unwrap();
        assert_eq!(
            [0, 255, 2, 1].map(|value| mapping.label(value)),
            [0, 2, 0, 1]
        );
        assert_eq!(LabelMapping::default().label(255), 255);
        let text = serde_json::to_string(&mapping).unwrap();
        assert_eq!(text, r#"{"2":0,"255":2}"#);
        let read: LabelMapping = serde_json::from_str(&text).unwrap();
        assert_eq!(read, mapping);
        let error = toml::from_str::<LabelMapping>("sky = 1").unwrap_err();
        assert!(error.to_string().contains("\"sky\" is no value"), "{error}");
    }

    #[test]
    fn a_label_has_the_colour_of_its_value() {
        let mapping: LabelMapping = toml::from_str("3 = 0\n0 = 1\n").unwrap();
        let of_values = Palette::new((0..4).map(|value| [value; 3]).collect());
        assert_eq!(
            mapping.palette(&of_values).colors(),
            [[3; 3], [0; 3], [2; 3], [3; 3]]
        );
        let cut = Palette::new(vec![[7; 3], [8; 3]]);
        assert!(
            mapping.palette(&cut).colors().is_empty(),
            "value 3 has no colour"
        );
    }
}
