//! The components that norms are logged by.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use super::run_loop::Values;
use crate::optim::Norms;

/// The component of a parameter: the field of the trained module that holds it; of a U-Net its down, middle and up blocks, and
/// what is before and after those.
pub(super) fn component_of(path: &[String]) -> String {
    let [first, second, ..] = path else {
        return path.first().cloned().unwrap_or_default();
    };
    if first != "unet" {
        return first.clone();
    }
    let part = match second.as_str() {
        "down_blocks" | "mid_block" | "up_blocks" => second,
        "conv_norm_out" | "conv_out" => "output",
        _ => "input",
    };
    format!("{first}/{part}")
}

/// `NAME` of all parameters, and `NAME/COMPONENT` of each component.
pub(super) fn logged(name: &'static str, norms: &Norms) -> Values {
    let components = (norms.components.iter())
        .map(|(component, norm)| (interned(format!("{name}/{component}")), *norm));
    std::iter::once((name, norms.total))
        .chain(components)
        .collect()
}

/// A figure's name for the rest of the process. There are as many as a configuration has components and channels, and each is kept
/// once.
pub(super) fn interned(name: String) -> &'static str {
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    match names.get(name.as_str()) {
        Some(known) => known,
        None => {
            let name: &'static str = name.leak();
            names.insert(name);
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_belong_to_components() {
        for (path, component) in [
            ("encoder.conv_in.weight", "encoder"),
            ("quant_conv.weight", "quant_conv"),
            ("unet.conv_in.weight", "unet/input"),
            ("unet.time_embedding.linear_1.weight", "unet/input"),
            (
                "unet.down_blocks.0.resnets.0.conv1.bias",
                "unet/down_blocks",
            ),
            ("unet.mid_block.resnets.0.conv1.bias", "unet/mid_block"),
            ("unet.up_blocks.0.resnets.0.conv1.bias", "unet/up_blocks"),
            ("unet.conv_out.bias", "unet/output"),
            ("conditioner.model.layers.0.fc1.weight", "conditioner"),
            ("logvar", "logvar"),
        ] {
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            assert_eq!(component_of(&path), component);
        }
    }

    #[test]
    fn names_are_kept_once() {
        let [first, second] = ["norm/a", "norm/a"].map(|name| interned(name.to_owned()));
        assert!(std::ptr::eq(first, second));
        let norms = Norms {
            total: 5.0,
            components: vec![("a".into(), 3.0), ("b".into(), 4.0)],
        };
        let expected = [("norm", 5.0), ("norm/a", 3.0), ("norm/b", 4.0)];
        assert_eq!(logged("norm", &norms), expected);
    }
}
