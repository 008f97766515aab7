//! Tensors as PyTorch describes them: calls of functions that rebuild a view of a storage.

use super::super::WeightsError;
use super::object::{Element, Object, Storage, Value, View};
use super::pickle::Machine;

/// More axes than any tensor has.
const MAX_RANK: usize = 64;

impl Machine<'_, '_> {
    /// What a call makes: a tensor, a dictionary, or something opaque.
    pub(super) fn call(
        &mut self,
        function: Value,
        arguments: Value,
    ) -> Result<Object, WeightsError> {
        let opaque = Ok(Object::Opaque(function));
        let Some(Object::Global(module, name)) = self.object(function) else {
            return opaque;
        };
        match (module.as_str(), name.as_str()) {
            ("collections", "OrderedDict") => self.ordered_dict(arguments),
            ("torch", "Size") => match self.tuple_of(arguments) {
                Some(&[sides]) if self.tuple_of(sides).is_some() => {
                    Ok(Object::Tuple(self.sides(sides)?))
                }
                _ => opaque,
            },
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                self.rebuild(function, arguments, None)
            }
            ("torch._utils", "_rebuild_tensor_v3") => {
                let dtype = self.tuple_of(arguments).and_then(|items| items.get(6));
                let element = match dtype.and_then(|dtype| self.object(*dtype)) {
                    Some(Object::Global(module, name)) if module == "torch" => {
                        Element::of_dtype(name)
                    }
                    _ => None,
                };
                match element {
                    Some(element) => self.rebuild(function, arguments, Some(element)),
                    None => opaque,
                }
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                match self.tuple_of(arguments).and_then(|items| items.first()) {
                    Some(data) => self.same_tensor(*data, function),
                    None => opaque,
                }
            }
            // A tensor with attributes: (function, class, its arguments, attributes).
            ("torch._tensor", "_rebuild_from_type" | "_rebuild_from_type_v2") => {
                match self.tuple_of(arguments) {
                    // One level only: nothing that PyTorch writes nests these.
                    Some(&[inner, _, arguments, ..]) if self.is_rebuild_v2(inner) => {
                        self.rebuild(inner, arguments, None)
                    }
                    _ => opaque,
                }
            }
            _ => opaque,
        }
    }

    /// An empty dictionary, or in files of Python 2 one of a list of pairs.
    fn ordered_dict(&mut self, arguments: Value) -> Result<Object, WeightsError> {
        let items = match self.tuple_of(arguments) {
            Some(&[pairs]) => match self.object(pairs) {
                Some(Object::List(items)) => items,
                _ => return Err(self.damaged("a dictionary of no pairs")),
            },
            _ => return Ok(Object::Dict(Vec::new())),
        };
        let pairs = items.iter().map(|item| match self.object(*item) {
            Some(Object::List(pair) | Object::Tuple(pair)) => match pair.as_slice() {
                &[key, value] => Some((key, value)),
                _ => None,
            },
            _ => None,
        });
        let pairs: Option<Vec<_>> = pairs.collect();
        let pairs = pairs.ok_or_else(|| self.damaged("a dictionary of no pairs"))?;
        self.charge(size_of_val(pairs.as_slice()))?;
        Ok(Object::Dict(pairs))
    }

    fn is_rebuild_v2(&self, function: Value) -> bool {
        matches!(self.object(function), Some(Object::Global(module, name))
            if module == "torch._utils" && name == "_rebuild_tensor_v2")
    }

    /// A parameter is its tensor.
    fn same_tensor(&mut self, data: Value, function: Value) -> Result<Object, WeightsError> {
        match self.object(data) {
            Some(Object::Tensor(view)) => {
                let view = view.clone();
                self.charge_view(&view)?;
                Ok(Object::Tensor(view))
            }
            Some(Object::Opaque(maker)) => Ok(Object::Opaque(*maker)),
            _ => Ok(Object::Opaque(function)),
        }
    }

    fn charge_view(&mut self, view: &View) -> Result<(), WeightsError> {
        let lengths = 2 * size_of_val(view.shape.as_slice());
        self.charge(size_of::<View>() + view.storage.key.len() + lengths)
    }

    /// The tensor of (storage, offset, shape, strides, ...); of an untyped storage with `element`s.
    fn rebuild(
        &mut self,
        function: Value,
        arguments: Value,
        element: Option<Element>,
    ) -> Result<Object, WeightsError> {
        let no_tensor = |machine: &Self| machine.damaged("a tensor without shape or storage");
        let Some(&[storage, Value::Int(offset), shape, strides, ..]) = self.tuple_of(arguments)
        else {
            return Err(no_tensor(self));
        };
        let mut storage = match self.object(storage) {
            Some(Object::Storage(storage)) => Storage::clone(storage),
            Some(Object::Opaque(_)) => return Ok(Object::Opaque(function)),
            _ => return Err(no_tensor(self)),
        };
        if let Some(element) = element {
            let bytes = storage.len.saturating_mul(storage.element.size as u64);
            storage.len = bytes / element.size as u64;
            storage.element = element;
        }
        let (shape, strides) = (self.lengths(shape)?, self.lengths(strides)?);
        let Ok(offset) = u64::try_from(offset) else {
            return Err(no_tensor(self));
        };
        if shape.len() != strides.len() {
            return Err(no_tensor(self));
        }
        let view = View {
            storage,
            offset,
            shape,
            strides,
        };
        self.charge_view(&view)?;
        Ok(Object::Tensor(Box::new(view)))
    }

    /// The items of a short tuple.
    fn sides(&self, tuple: Value) -> Result<Vec<Value>, WeightsError> {
        match self.tuple_of(tuple) {
            Some(items) if items.len() <= MAX_RANK => Ok(items.to_vec()),
            _ => Err(self.damaged("a tensor without shape or storage")),
        }
    }

    fn lengths(&self, tuple: Value) -> Result<Vec<usize>, WeightsError> {
        let items = self.sides(tuple)?;
        let lengths = items.into_iter().map(|item| match item {
            Value::Int(length) => usize::try_from(length).ok(),
            _ => None,
        });
        let lengths: Option<Vec<usize>> = lengths.collect();
        lengths.ok_or_else(|| self.damaged("a tensor with a length that is none"))
    }
}
