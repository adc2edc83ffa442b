//! Handles are not pointers: what C holds is a slot number and a generation, looked up in a
//! table. A handle that was closed, closed twice, or never existed is found out and answered
//! with a status; nothing is ever dereferenced because a host says so. Each lookup costs one
//! uncontended lock.

use std::sync::{Arc, PoisonError, RwLock};

use super::layout::{TercetEngine, TercetResults};
use super::results::Results;
use crate::engine::Engine;
use crate::error::{HostError, Kind};

pub(super) enum Object {
    Engine(Arc<Engine>),
    Results(Arc<Results>),
}

struct Slot {
    generation: usize,
    object: Option<Object>,
}

struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

static SLOTS: RwLock<Slots> = RwLock::new(Slots {
    slots: Vec::new(),
    free: Vec::new(),
});

/// A handle is `generation << HALF | slot + 1`, so it is never 0.
const HALF: u32 = usize::BITS / 2;
const MASK: usize = (1 << HALF) - 1;

pub(super) fn insert(object: Object) -> Result<usize, HostError> {
    let mut table = SLOTS.write().unwrap_or_else(PoisonError::into_inner);
    let index = match table.free.pop() {
        Some(index) => index,
        None => {
            let index = table.slots.len();
            if index + 1 >= MASK {
                return Err(HostError::argument(
                    "too many handles are open; free results and close engines",
                ));
            }
            table.slots.push(Slot {
                generation: 0,
                object: None,
            });
            index
        }
    };
    let slot = &mut table.slots[index];
    slot.object = Some(object);
    Ok(slot.generation << HALF | (index + 1))
}

fn lookup<T>(handle: usize, f: impl FnOnce(&Object) -> Option<T>) -> Result<T, HostError> {
    if handle == 0 {
        return Err(HostError::argument("the handle is NULL"));
    }
    let table = SLOTS.read().unwrap_or_else(PoisonError::into_inner);
    (handle & MASK)
        .checked_sub(1)
        .and_then(|index| table.slots.get(index))
        .filter(|slot| slot.generation == handle >> HALF)
        .and_then(|slot| f(slot.object.as_ref()?))
        .ok_or_else(|| {
            HostError::new(
                Kind::Closed,
                "the handle was closed or freed before, or never was one",
            )
        })
}

pub(super) fn remove(
    handle: usize,
    is_kind: impl FnOnce(&Object) -> bool,
) -> Result<Object, HostError> {
    lookup(handle, |object| is_kind(object).then_some(()))?;
    let mut table = SLOTS.write().unwrap_or_else(PoisonError::into_inner);
    let index = (handle & MASK) - 1;
    let slot = &mut table.slots[index];
    // Another thread may have been faster between the two locks.
    let current = slot.generation == handle >> HALF;
    match slot.object.take() {
        Some(object) if current => {
            slot.generation = slot.generation.wrapping_add(1) & MASK;
            table.free.push(index);
            Ok(object)
        }
        other => {
            slot.object = other;
            Err(HostError::new(
                Kind::Closed,
                "the handle was closed meanwhile",
            ))
        }
    }
}

pub(super) fn find_engine(handle: *const TercetEngine) -> Result<Arc<Engine>, HostError> {
    lookup(handle.addr(), |object| match object {
        Object::Engine(engine) => Some(engine.clone()),
        Object::Results(_) => None,
    })
}

pub(super) fn find_results(handle: *const TercetResults) -> Result<Arc<Results>, HostError> {
    lookup(handle.addr(), |object| match object {
        Object::Results(results) => Some(results.clone()),
        Object::Engine(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_used_again_does_not_answer_to_the_old_handle() {
        let first = insert(Object::Results(Arc::new(Results::default()))).unwrap();
        let is_results = |o: &Object| matches!(o, Object::Results(_));
        remove(first, is_results).unwrap();
        let mut handles = Vec::new();
        // Other tests share the table: take slots until that one comes back.
        for _ in 0..64 {
            let next = insert(Object::Results(Arc::new(Results::default()))).unwrap();
            handles.push(next);
            assert_ne!(next, first);
        }
        assert_eq!(remove(first, is_results).err().unwrap().kind, Kind::Closed);
        for handle in handles {
            remove(handle, is_results).unwrap();
        }
    }
}
