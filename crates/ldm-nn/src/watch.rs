//! Which layers of a forward pass gave finite numbers: how a NaN is traced to the module that it came from.
//!
//! Off, as it is in any ordinary step, a layer costs the look at one flag of its thread. Within [`record`] every layer
//! of these crates notes whether what went in and what came out was finite. Sums between layers, such as residuals,
//! have no entry: one that overflows shows as the input of the next layer.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    nn::Embedding,
    prelude::*,
};

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(false) };
    /// Per application of a layer: the layer, and `[1]` with 1 for an output that is not finite and 2 for such an input.
    static RECORDED: RefCell<Vec<(Site, Tensor<1>)>> = const { RefCell::new(Vec::new()) };
}

/// Where in a module a number came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// A parameter of the layer.
    pub param: ParamId,
    /// Modules between the one that is meant and the layer: 1 for an attention that is known by its `to_q`.
    pub above: usize,
}

impl Site {
    /// The layer that owns `param`.
    pub fn layer(param: ParamId) -> Self {
        Self { param, above: 0 }
    }

    /// The module that owns the layer that owns `param`.
    pub fn parent(param: ParamId) -> Self {
        Self { param, above: 1 }
    }
}

/// One application of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The layer.
    pub site: Site,
    /// Whether all of its input was finite.
    pub input: bool,
    /// Whether all of its output was finite.
    pub output: bool,
}

/// Runs `forward`, and returns with its result the layers that it applied on this thread, in the order of their execution.
///
/// # Panics
/// If it is called within another recording.
pub fn record<R>(forward: impl FnOnce() -> R) -> (R, Vec<Entry>) {
    /// Ends the recording also where `forward` panics.
    struct Recording;
    impl Drop for Recording {
        fn drop(&mut self) {
            RECORDING.set(false);
            RECORDED.take();
        }
    }
    assert!(!RECORDING.replace(true), "a recording is under way");
    let recording = Recording;
    let result = forward();
    let recorded = RECORDED.take();
    drop(recording);
    if recorded.is_empty() {
        return (result, Vec::new());
    }
    let (sites, flags): (Vec<_>, Vec<_>) = recorded.into_iter().unzip();
    // All flags in one transfer: a device is asked to finish once, not once a layer.
    let flags = Tensor::cat(flags, 0).into_data();
    let entry = |(site, flags): (Site, f32)| Entry {
        site,
        input: flags < 2.0,
        output: flags % 2.0 == 0.0,
    };
    let entries = sites.into_iter().zip(flags.iter::<f32>()).map(entry);
    (result, entries.collect())
}

/// Applies a layer that has a parameter `param` to `x`.
pub fn layer<const I: usize, const O: usize>(
    param: ParamId,
    x: Tensor<I>,
    forward: impl FnOnce(Tensor<I>) -> Tensor<O>,
) -> Tensor<O> {
    if !RECORDING.get() {
        return forward(x);
    }
    let input = not_finite(x.clone());
    let y = forward(x);
    note(Site::layer(param), Some(input), &y);
    y
}

/// Applies what computes one tensor from several: the attention, say, of a module that has the layer of `param`.
pub fn joint<const N: usize, const I: usize, const O: usize>(
    site: Site,
    inputs: [Tensor<I>; N],
    forward: impl FnOnce([Tensor<I>; N]) -> Tensor<O>,
) -> Tensor<O> {
    if !RECORDING.get() {
        return forward(inputs);
    }
    let flags = inputs.iter().map(|x| not_finite(x.clone())).collect();
    let input = Tensor::cat(flags, 0).max();
    let y = forward(inputs);
    note(site, Some(input), &y);
    y
}

/// Embeds `indices`, `[N, L]` to `[N, L, width]`.
pub fn embedding(embedding: &Embedding, indices: Tensor<2, Int>) -> Tensor<3> {
    parameter(embedding.weight.id, embedding.forward(indices))
}

/// Notes values taken from the parameter `param` itself.
pub fn parameter<const D: usize>(param: ParamId, y: Tensor<D>) -> Tensor<D> {
    if RECORDING.get() {
        note(Site::layer(param), None, &y);
    }
    y
}

fn note<const D: usize>(site: Site, input: Option<Tensor<1>>, output: &Tensor<D>) {
    let output = not_finite(output.clone());
    let flags = match input {
        Some(input) => output + input.mul_scalar(2.0),
        None => output,
    };
    RECORDED.with_borrow_mut(|recorded| recorded.push((site, flags)));
}

/// 1 if any of `x` is not finite, else 0: `[1]`, without gradients.
fn not_finite<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let x = x.detach().inner();
    x.is_finite().bool_not().any().float()
}

/// The names of modules by their parameters, such as `down_blocks.0.resnets.1.conv1`.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    paths: HashMap<ParamId, Vec<String>>,
}

impl Paths {
    /// Adds the parameters of `module`, which itself is called `name`, or nothing if that is empty.
    #[must_use]
    pub fn with<M: Module>(mut self, name: &str, module: &M) -> Self {
        let mut visitor = PathVisitor {
            stack: PathStack::default(),
            paths: &mut self.paths,
        };
        if !name.is_empty() {
            visitor.stack.enter(name, "");
        }
        module.visit(&mut visitor);
        self
    }

    /// The name of the module at `site`.
    pub fn module(&self, site: Site) -> Option<String> {
        let path = self.paths.get(&site.param)?;
        let length = path.len().checked_sub(1 + site.above)?;
        Some(path[..length].join("."))
    }
}

struct PathVisitor<'a> {
    stack: PathStack,
    paths: &'a mut HashMap<ParamId, Vec<String>>,
}

impl ModuleVisitor for PathVisitor<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.paths.insert(param.id, self.stack.names().to_vec());
    }

    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }
}

/// Where a visitor or mapper of a module is, in diffusers' names: the variant of an enum is no part of them.
#[derive(Clone, Debug, Default)]
pub struct PathStack(Vec<String>);

impl PathStack {
    /// To be called from `enter_module`.
    pub fn enter(&mut self, name: &str, container_type: &str) {
        if !is_enum(container_type) {
            self.0.push(name.to_owned());
        }
    }

    /// To be called from `exit_module`.
    pub fn exit(&mut self, container_type: &str) {
        if !is_enum(container_type) {
            self.0.pop();
        }
    }

    /// The names, the outermost first.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

fn is_enum(container_type: &str) -> bool {
    container_type.starts_with("Enum:")
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig, conv::Conv2dConfig};

    use super::*;
    use crate::{AttentionConfig, ops};

    /// Two layers and an attention between them.
    #[derive(Module, Debug)]
    struct Model {
        first: Linear,
        attn: crate::Attention,
        convs: Vec<burn::nn::conv::Conv2d>,
    }

    impl Model {
        fn new(device: &Device) -> Self {
            let attention = AttentionConfig {
                query_dim: 4,
                context_dim: None,
                heads: 2,
                head_dim: 2,
                qkv_bias: false,
                group_norm: None,
            };
            Self {
                first: LinearConfig::new(4, 4).init(device),
                attn: attention.init(device),
                convs: vec![Conv2dConfig::new([1, 1], [1, 1]).init(device)],
            }
        }

        fn forward(&self, x: Tensor<3>) -> Tensor<4> {
            let x = self.attn.forward(ops::linear(&self.first, x), None);
            ops::conv2d(&self.convs[0], x.unsqueeze_dim(1))
        }

        fn first_not_finite(&self, x: Tensor<3>) -> Option<String> {
            let (_, trace) = record(|| self.forward(x));
            let entry = trace.into_iter().find(|entry| !entry.output)?;
            assert!(entry.input, "{entry:?}");
            Paths::default().with("model", self).module(entry.site)
        }
    }

    fn input(device: &Device) -> Tensor<3> {
        Tensor::<1>::from_floats([0.5, -1.0, 2.0, 1.5, 0.1, 0.7, -0.3, 1.0], device)
            .reshape([1, 2, 4])
    }

    #[test]
    fn the_first_module_with_a_bad_output_is_named() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            let model = Model::new(&device);
            assert_eq!(model.first_not_finite(input(&device)), None);
            let with = |change: &dyn Fn(&mut Model)| {
                let mut model = model.clone();
                change(&mut model);
                model.first_not_finite(input(&device))
            };
            let huge = |weight: &mut Param<Tensor<2>>| {
                *weight = weight.clone().map(|weight| weight.ones_like() * 3e38);
            };
            let nan = |weight: &mut Param<Tensor<2>>| {
                *weight = weight.clone().map(|weight| weight * f32::NAN);
            };
            let named = with(&|model| nan(&mut model.first.weight));
            assert_eq!(named.as_deref(), Some("model.first"));
            let named = with(&|model| nan(&mut model.attn.to_k.weight));
            assert_eq!(named.as_deref(), Some("model.attn.to_k"));
            let named = with(&|model| {
                for linear in [&mut model.first, &mut model.attn.to_v] {
                    linear.weight = linear.weight.clone().map(|weight| weight.ones_like());
                }
                huge(&mut model.attn.to_out[0].weight);
            });
            assert_eq!(named.as_deref(), Some("model.attn.to_out.0"));
            // Finite queries and keys whose product isn't: neither projection is to blame.
            let named = with(&|model| {
                for projection in [&mut model.attn.to_q, &mut model.attn.to_k] {
                    let large = |weight: Tensor<2>| weight.ones_like() * 1e30;
                    projection.weight = projection.weight.clone().map(large);
                }
                model.first.weight = model.first.weight.clone().map(|w| w.ones_like());
            });
            assert_eq!(named.as_deref(), Some("model.attn"));
            let named = with(&|model| {
                let weight = &mut model.convs[0].weight;
                *weight = weight.clone().map(|weight| weight * f32::INFINITY);
            });
            assert_eq!(named.as_deref(), Some("model.convs.0"));
        }
    }

    #[test]
    fn entries_are_in_order_and_only_of_the_recording() {
        let device = Device::flex();
        let model = Model::new(&device);
        model.forward(input(&device));
        let (_, trace) = record(|| model.forward(input(&device)));
        let paths = Paths::default().with("", &model);
        let names: Vec<_> = (trace.iter())
            .map(|entry| paths.module(entry.site).unwrap())
            .collect();
        let expected = [
            "first",
            "attn.to_q",
            "attn.to_k",
            "attn.to_v",
            "attn",
            "attn.to_out.0",
            "convs.0",
        ];
        assert_eq!(names, expected);
        assert!(trace.iter().all(|entry| entry.input && entry.output));
        let (_, trace) = record(|| model.forward(input(&device) * f32::NAN));
        assert!(trace.iter().all(|entry| !entry.input && !entry.output));
    }

    #[test]
    fn a_recording_ends_with_a_panic() {
        let panicking = std::panic::catch_unwind(|| record(|| panic!("on purpose")));
        assert!(panicking.is_err());
        assert!(record(|| ()).1.is_empty());
    }
}
