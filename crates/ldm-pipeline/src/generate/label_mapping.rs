//! Labels as masks store them, and as a model counts them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LabelMap;

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

    /// A mask with labels in place of its values.
    #[must_use]
    pub fn apply(&self, mut map: LabelMap) -> LabelMap {
        if !self.is_empty() {
            for value in &mut map.labels {
                *value = self.labels.get(value).copied().unwrap_or(*value);
            }
        }
        map
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
        let map = LabelMap {
            width: 2,
            height: 2,
            labels: vec![0, 255, 2, 1],
        };
        assert_eq!(mapping.apply(map.clone()).labels, [0, 2, 0, 1]);
        assert_eq!(LabelMapping::default().apply(map.clone()), map);
        let text = serde_json::to_string(&mapping).unwrap();
        assert_eq!(text, r#"{"2":0,"255":2}"#);
        let read: LabelMapping = serde_json::from_str(&text).unwrap();
        assert_eq!(read, mapping);
        let error = toml::from_str::<LabelMapping>("sky = 1").unwrap_err();
        assert!(error.to_string().contains("\"sky\" is no value"), "{error}");
    }
}
