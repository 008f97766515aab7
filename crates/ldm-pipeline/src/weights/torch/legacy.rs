//! What `torch.save` wrote before torch 1.6, and still does on request: five pickles, then the storages one after the
//! other, each after its number of elements.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::WeightsError;
use super::super::source::{Budget, Source};
use super::super::tensors::Tensors;
use super::input::Input;
use super::object::{Object, Pickled, Value};
use super::pickle;
use super::state_dict::{Place, tensors};

/// How these files begin: a pickled number.
pub(in super::super) const MAGIC: &[u8] =
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const PROTOCOL: Value = Value::Int(1001);
/// Length of the number before a storage.
const COUNT_LEN: u64 = 8;
/// Memory for a storage's place.
const PLACE_COST: usize = 128;

/// The tensors of such a file.
pub(in super::super) fn open(source: &Arc<Source>) -> Result<Tensors, WeightsError> {
    let mut budget = Budget::of(source);
    let mut input = Input::new(source, MAGIC.len() as u64, source.len());
    if pickle::run(&mut input, &mut budget)?.root != PROTOCOL {
        return Err(source.invalid("a version of PyTorch's old format that is not known"));
    }
    let system = pickle::run(&mut input, &mut budget)?;
    let little = system
        .dict(system.root)
        .and_then(|facts| system.get(facts, "little_endian"));
    if little != Some(Value::Bool(true)) {
        return Err(source.invalid("its numbers are big-endian, which is not read"));
    }
    let pickled = pickle::run(&mut input, &mut budget)?;
    let order = pickle::run(&mut input, &mut budget)?;
    let places = places(source, &pickled, &order, input.position(), &mut budget)?;
    tensors(source, &pickled, &mut budget, |storage| {
        let place = places.get(&storage.key).copied();
        place.ok_or_else(|| {
            source.invalid(format!("the data of storage `{}` is missing", storage.key))
        })
    })
}

/// Where the storages are that `order` lists, beginning at `position`.
fn places(
    source: &Source,
    pickled: &Pickled,
    order: &Pickled,
    mut position: u64,
    budget: &mut Budget,
) -> Result<HashMap<String, Place>, WeightsError> {
    let damaged = || source.invalid("damaged where its storages begin");
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    for object in &pickled.objects {
        if let Object::Storage(storage) = object {
            budget.charge(source, PLACE_COST)?;
            sizes.insert(&storage.key, storage.element.size as u64);
        }
    }
    let Some(Object::List(keys)) = order.object(order.root) else {
        return Err(damaged());
    };
    let mut places = HashMap::new();
    for key in keys {
        let key = match *key {
            Value::Int(key) => key.to_string(),
            key => order.text(key).ok_or_else(damaged)?.to_owned(),
        };
        let size = *sizes.get(key.as_str()).ok_or_else(damaged)?;
        let begin = position + COUNT_LEN;
        if begin > source.len() {
            return Err(damaged());
        }
        let mut count = [0; COUNT_LEN as usize];
        source.read_at(position, &mut count)?;
        let len = u64::from_le_bytes(count).checked_mul(size);
        let end = len.and_then(|len| begin.checked_add(len));
        let (Some(len), Some(end)) = (len, end) else {
            return Err(damaged());
        };
        if end > source.len() {
            return Err(source.invalid("truncated"));
        }
        budget.charge(source, key.len() + PLACE_COST)?;
        places.insert(key, Place { begin, len });
        position = end;
    }
    Ok(places)
}
