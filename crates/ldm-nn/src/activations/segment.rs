//! A block as one node of burn's graph.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    backend::{
        Autodiff, Backend, DispatchKindConversion, DispatchTensor,
        autodiff::{
            NodeId,
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients as NodeGradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    module::{Module, ModuleVisitor, Param},
    tensor::{Gradients, Tensor},
};

use super::{BlockInputs, MapInputs};

/// Parents of a node: up to three tracked inputs, and one parameter, without which the output of a block that gets only constants
/// would be a constant.
const PARENTS: usize = 4;

/// Runs the block on whichever backend its tensors are on.
#[cfg_attr(
    feature = "tch",
    allow(
        deprecated,
        reason = "burn announces the end of LibTorch, which is supported here"
    )
)]
pub(super) fn run<M, I, const D: usize>(
    module: &M,
    inputs: I,
    block: impl Fn(&M, I) -> Tensor<D> + Send + 'static,
) -> Tensor<D>
where
    M: Module + 'static,
    I: BlockInputs,
{
    macro_rules! try_on {
        ($($backend:ident if $cfg:meta;)*) => {$(
            #[cfg($cfg)]
            if let Some(parents) = Parents::<burn::backend::$backend>::of(module, &inputs) {
                return parents.record(module, inputs, block);
            }
        )*};
    }
    try_on! {
        Flex if feature = "flex";
        Cube if any(feature = "cuda", feature = "metal", feature = "rocm", feature = "vulkan", feature = "wgpu");
        LibTorch if feature = "tch";
    }
    block(module, inputs)
}

/// The nodes of the graph that a block hangs on.
struct Parents<B: Backend> {
    tensors: Vec<FloatTensor<Autodiff<B>>>,
    /// Whose gradient each tensor of the inputs wants, in their order.
    inputs: Vec<Option<NodeId>>,
    /// Likewise of the module's parameters.
    params: Vec<Option<NodeId>>,
}

impl<B: Backend> Parents<B>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    /// `None` if nothing is tracked, or something is that isn't of this backend.
    fn of(module: &impl Module, inputs: &impl BlockInputs) -> Option<Self> {
        let mut finder = Finder {
            parents: Self {
                tensors: Vec::new(),
                inputs: Vec::new(),
                params: Vec::new(),
            },
            foreign: false,
        };
        let _ = inputs.clone().map(&mut finder);
        module.visit(&mut finder);
        let Finder { parents, foreign } = finder;
        (!foreign && !parents.tensors.is_empty()).then_some(parents)
    }

    fn record<M, I, const D: usize>(
        self,
        module: &M,
        inputs: I,
        block: impl Fn(&M, I) -> Tensor<D> + Send + 'static,
    ) -> Tensor<D>
    where
        M: Module + 'static,
        I: BlockInputs,
    {
        let module = module.valid();
        let inputs = inputs.map(&mut Untracked);
        let output = block(&module, inputs.clone())
            .inner()
            .try_into_primitive::<B>()
            .expect("a block's output is on its inputs' backend");

        let (wanted, params) = (self.inputs, self.params);
        let segment = Segment::<B>::new(move |gradient| {
            let gradient = Tensor::<D>::from_primitive::<B>(gradient);
            let module = module.train();
            let mut leaves = Leaves::<B> {
                wanted: wanted.into_iter(),
                gradients: Vec::new(),
            };
            let inputs = inputs.map(&mut leaves);
            // The gradient of this sum with respect to the output is `gradient`, unrounded.
            let mut found = (block(&module, inputs) * gradient).sum().backward();
            let mut of_params = ParamGradients::<B> {
                found: &mut found,
                wanted: params.into_iter(),
                gradients: Vec::new(),
            };
            module.visit(&mut of_params);
            let mut gradients = of_params.gradients;
            gradients.extend((leaves.gradients.into_iter()).map(|take| take(&mut found)));
            gradients
        });

        let tensors = self.tensors;
        assert!(
            tensors.len() <= PARENTS,
            "a block to recompute has {} tracked tensors, more than {PARENTS}",
            tensors.len()
        );
        // Fewer parents fill the places by repetition.
        let nodes = std::array::from_fn(|place| tensors[place.min(tensors.len() - 1)].node());
        let prepared = Backward::<B, PARENTS>::prepare::<NoCheckpointing>(Recompute, nodes)
            .compute_bound()
            .stateful();
        let output = match prepared {
            OpsKind::Tracked(prepared) => prepared.finish(segment, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        };
        Tensor::from_primitive::<Autodiff<B>>(output)
    }
}

/// Finds out what is tracked.
struct Finder<B: Backend> {
    parents: Parents<B>,
    foreign: bool,
}

impl<B: Backend> Finder<B>
where
    DispatchTensor: DispatchKindConversion<Autodiff<B>>,
{
    fn tracked<const D: usize>(&mut self, x: Tensor<D>) -> Option<FloatTensor<Autodiff<B>>> {
        let x = x.is_tracked().then_some(x)?;
        let primitive = x.try_into_primitive::<Autodiff<B>>();
        self.foreign |= primitive.is_err();
        primitive.ok()
    }
}

impl<B: Backend> MapInputs for Finder<B>
where
    DispatchTensor: DispatchKindConversion<Autodiff<B>>,
{
    fn tensor<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D> {
        let tracked = self.tracked(x.clone());
        (self.parents.inputs).push(tracked.as_ref().map(|tensor| tensor.id()));
        self.parents.tensors.extend(tracked);
        x
    }
}

impl<B: Backend> ModuleVisitor for Finder<B>
where
    DispatchTensor: DispatchKindConversion<Autodiff<B>>,
{
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tracked = self.tracked(param.val());
        let is_first = self.parents.params.iter().all(Option::is_none);
        (self.parents.params).push(tracked.as_ref().map(|tensor| tensor.id()));
        if is_first {
            self.parents.tensors.extend(tracked);
        }
    }
}

/// Leaves the graph.
struct Untracked;

impl MapInputs for Untracked {
    fn tensor<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D> {
        x.inner()
    }
}

/// Takes a tensor's gradient out of a finished backward pass.
type Take<B> = Box<dyn FnOnce(&mut Gradients) -> (NodeId, FloatTensor<B>)>;

/// Makes leaves of a graph of their own from the inputs whose gradient is wanted.
struct Leaves<B: Backend> {
    wanted: std::vec::IntoIter<Option<NodeId>>,
    gradients: Vec<Take<B>>,
}

impl<B: Backend> MapInputs for Leaves<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    fn tensor<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D> {
        let Some(node) = self.wanted.next().flatten() else {
            return x;
        };
        let x = x.autodiff().require_grad();
        let leaf = x.clone();
        self.gradients.push(Box::new(move |found| {
            // The graph outside waits for a gradient even where the block doesn't depend on the input.
            let gradient = leaf
                .grad_remove(found)
                .unwrap_or_else(|| leaf.inner().zeros_like());
            (node, primitive::<B, D>(gradient))
        }));
        x
    }
}

/// Takes the gradients of the parameters that have one.
struct ParamGradients<'a, B: Backend> {
    found: &'a mut Gradients,
    wanted: std::vec::IntoIter<Option<NodeId>>,
    gradients: Vec<(NodeId, FloatTensor<B>)>,
}

impl<B: Backend> ModuleVisitor for ParamGradients<'_, B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(node) = self.wanted.next().flatten()
            && let Some(gradient) = param.val().grad_remove(self.found)
        {
            self.gradients.push((node, primitive::<B, D>(gradient)));
        }
    }
}

fn primitive<B: Backend, const D: usize>(x: Tensor<D>) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    x.inner()
        .try_into_primitive::<B>()
        .expect("a block's tensors are on its inputs' backend")
}

/// From the output's gradient to those of the parents.
type Rerun<B> = Box<dyn FnOnce(FloatTensor<B>) -> Vec<(NodeId, FloatTensor<B>)> + Send>;

/// What a node keeps: how to run its block again, once.
struct Segment<B: Backend>(Arc<Mutex<Option<Rerun<B>>>>);

impl<B: Backend> Segment<B> {
    fn new(
        rerun: impl FnOnce(FloatTensor<B>) -> Vec<(NodeId, FloatTensor<B>)> + Send + 'static,
    ) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(rerun)))))
    }
}

impl<B: Backend> Clone for Segment<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> fmt::Debug for Segment<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Segment")
    }
}

#[derive(Debug)]
struct Recompute;

impl<B: Backend> Backward<B, PARENTS> for Recompute {
    type State = Segment<B>;

    /// burn holds the lock of this graph meanwhile. The block's graph is another one, since all its leaves are new.
    fn backward(
        self,
        ops: Ops<Self::State, PARENTS>,
        grads: &mut NodeGradients,
        _: &mut Checkpointer,
    ) {
        let gradient = grads.consume::<B>(&ops.node);
        let rerun = (ops.state.0.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let rerun = rerun.expect("a graph is traversed once");
        for (node, gradient) in rerun(gradient) {
            grads.register::<B>(node, gradient);
        }
    }
}
