//! The state of an optimiser as tensors named by the paths of the parameters, `first.PATH` and `second.PATH`.
//!
//! Parameter ids are drawn anew by every process, so they can't be what a file refers to.

use std::collections::{BTreeMap, HashMap};

use burn::Tensor;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Device;
use burn_store::bridge;
use burn_store::burn_pack::Tensor as PackTensor;

use crate::optim::{Adam, AdamConfig, Moments};
use crate::weights::HeaderText;

/// The header entry with the number of updates of each parameter, as a JSON object.
const UPDATES: &str = "updates";
const FIRST: &str = "first";
const SECOND: &str = "second";

pub(super) fn optimizer_tensors<M: Module>(
    adam: &Adam,
    module: &M,
) -> (Vec<PackTensor>, HeaderText) {
    let mut tensors = Vec::new();
    let mut updates = BTreeMap::new();
    for (path, parameter) in parameters(module) {
        let Some(moments) = adam.moments.get(&parameter.id) else {
            continue;
        };
        for (kind, moment) in [(FIRST, &moments.first), (SECOND, &moments.second)] {
            tensors.push(bridge::from_tensor(moment, format!("{kind}.{path}"), None));
        }
        updates.insert(path, moments.updates);
    }
    (
        tensors,
        HeaderText::from([(UPDATES.to_owned(), serde_json::json!(updates).to_string())]),
    )
}

pub(super) fn optimizer_from_tensors<M: Module>(
    config: AdamConfig,
    module: &M,
    tensors: Vec<PackTensor>,
    header: &HeaderText,
) -> Result<Adam, String> {
    let updates = header.get(UPDATES).ok_or("not the state of an optimiser")?;
    let updates: BTreeMap<String, u64> =
        serde_json::from_str(updates).map_err(|error| error.to_string())?;
    let mut tensors: HashMap<String, PackTensor> = tensors
        .into_iter()
        .map(|tensor| (tensor.name.clone(), tensor))
        .collect();
    let parameters = parameters(module);

    let mut adam = config.init();
    for (path, updates) in updates {
        let parameter = parameters
            .get(&path)
            .ok_or_else(|| format!("the model has no parameter `{path}`"))?;
        let mut moment = |kind: &str| {
            let name = format!("{kind}.{path}");
            let tensor = tensors
                .remove(&name)
                .ok_or_else(|| format!("`{name}` is missing"))?;
            let [found] = tensor.shape[..] else {
                return Err(format!("`{name}` is not flat"));
            };
            if found != parameter.elements {
                return Err(format!(
                    "`{name}` has {found} values, the parameter {}",
                    parameter.elements
                ));
            }
            let data = bridge::into_data(tensor).map_err(|error| format!("`{name}`: {error}"))?;
            Ok(Tensor::<1>::from_data(data, &parameter.device))
        };
        let moments = Moments {
            updates,
            first: moment(FIRST)?,
            second: moment(SECOND)?,
        };
        adam.moments.insert(parameter.id, moments);
    }
    match tensors.into_keys().min() {
        Some(name) => Err(format!("`{name}` belongs to no parameter")),
        None => Ok(adam),
    }
}

struct Parameter {
    id: ParamId,
    elements: usize,
    device: Device,
}

/// The float parameters of `module` by path.
fn parameters<M: Module>(module: &M) -> BTreeMap<String, Parameter> {
    let mut inventory = Inventory::default();
    module.visit(&mut inventory);
    inventory.parameters
}

#[derive(Default)]
struct Inventory {
    path: Vec<String>,
    parameters: BTreeMap<String, Parameter>,
}

impl ModuleVisitor for Inventory {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let elements = param.lazy_shape().num_elements();
        let device = param.lazy_device().inner();
        self.parameters.insert(
            self.path.join("."),
            Parameter {
                id: param.id,
                elements,
                device,
            },
        );
    }
}
