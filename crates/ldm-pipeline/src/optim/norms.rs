//! L2 norms of gradients and updates, in all and by the components of a module.

use burn::Tensor;
use ldm_nn::watch::PathStack;

/// Puts a parameter's path, outermost name first, into a component.
pub type ComponentOf = fn(&[String]) -> String;

/// The L2 norm of something that each parameter of a module has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Norms {
    /// Over all parameters together.
    pub total: f64,
    /// Over those of each component, in the order of the module's fields.
    pub components: Vec<(String, f64)>,
}

/// Sums of squares on the way to [`Norms`], fed by a visitor of the module's parameters.
pub(super) struct Squares {
    stack: PathStack,
    component_of: Option<ComponentOf>,
    names: Vec<String>,
    on_host: f64,
    /// By component.
    parts: Vec<f64>,
    /// By parameter, with its component.
    on_device: Vec<(usize, Tensor<1>)>,
}

impl Squares {
    pub(super) fn new(component_of: Option<ComponentOf>) -> Self {
        Self {
            stack: PathStack::default(),
            component_of,
            names: Vec::new(),
            on_host: 0.0,
            parts: Vec::new(),
            on_device: Vec::new(),
        }
    }

    /// To be called from a visitor's `enter_module`.
    pub(super) fn enter(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    /// To be called from a visitor's `exit_module`.
    pub(super) fn exit(&mut self, container_type: &str) {
        self.stack.exit(container_type);
    }

    /// Adds a parameter's sum of squares.
    pub(super) fn add(&mut self, sum: f64) {
        self.on_host += sum;
        let component = self.component();
        self.parts[component] += sum;
    }

    /// Adds a parameter's sum of squares that a device still computes.
    pub(super) fn add_on_device(&mut self, sum: Tensor<1>) {
        let component = self.component();
        self.on_device.push((component, sum));
    }

    /// The norms of `scale` times what was added.
    pub(super) fn norms(mut self, scale: f64) -> Norms {
        let mut on_device = 0.0;
        if !self.on_device.is_empty() {
            let (components, sums): (Vec<_>, Vec<_>) = self.on_device.into_iter().unzip();
            // All sums in one transfer: a device is asked to finish once, not once a parameter.
            let sums = Tensor::cat(sums, 0).into_data();
            for (component, sum) in components.into_iter().zip(sums.iter::<f64>()) {
                on_device += sum;
                self.parts[component] += sum;
            }
        }
        let parts = self.parts.into_iter().map(|sum| sum.sqrt() * scale);
        Norms {
            total: (self.on_host + on_device).sqrt() * scale,
            components: match self.component_of {
                Some(_) => self.names.into_iter().zip(parts).collect(),
                None => Vec::new(),
            },
        }
    }

    /// The number of the current parameter's component.
    fn component(&mut self) -> usize {
        let name = match self.component_of {
            Some(component_of) => component_of(self.stack.names()),
            None => String::new(),
        };
        let known = self.names.iter().position(|known| *known == name);
        known.unwrap_or_else(|| {
            self.names.push(name);
            self.parts.push(0.0);
            self.parts.len() - 1
        })
    }
}
