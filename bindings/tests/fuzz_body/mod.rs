//! Body of the fuzz target `c_abi`, as a function that the suite calls too: the bytes say which
//! calls a C host makes, with which texts, numbers and handles. A finding is a panic, a read out of
//! bounds, or a status that is not one of the list.

use std::ffi::{CString, c_char};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use tercet_ffi::c_abi::*;

/// A bundle, made once.
fn shop() -> &'static CString {
    static SHOP: OnceLock<(tempfile::TempDir, CString)> = OnceLock::new();
    let (_, path) = SHOP.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.tercet");
        tercet_fixtures::write_shop(&path).unwrap();
        let path = CString::new(path.to_str().unwrap()).unwrap();
        (folder, path)
    });
    path
}

/// Takes values from the input until it is empty; then zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&b, rest)) => {
                self.0 = rest;
                b
            }
            None => 0,
        }
    }

    fn number(&mut self) -> u64 {
        // Mostly small, and now and then the largest there are.
        match self.byte() {
            255 => u64::MAX - u64::from(self.byte()),
            254 => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
            n => u64::from(n),
        }
    }

    fn float(&mut self) -> f32 {
        f32::from_bits(u32::from_le_bytes(std::array::from_fn(|_| self.byte())))
    }

    /// A text of a C host: any bytes without 0.
    fn text(&mut self) -> CString {
        match self.byte() {
            n @ 0..=99 => CString::new(format!("item-{n}")).unwrap(),
            n => {
                let length = usize::from(n - 99).min(self.0.len());
                let (text, rest) = self.0.split_at(length);
                self.0 = rest;
                let text: Vec<u8> = text.iter().copied().filter(|&b| b != 0).collect();
                CString::new(text).unwrap()
            }
        }
    }
}

/// Makes the calls that `input` asks for.
pub(crate) fn c_abi(input: &[u8]) {
    let mut input = Input(input);
    let mut engine = null_mut();
    let mut results = null_mut();
    let mut buffer = [0 as c_char; 40];
    let mut needed = 0usize;
    let options = TercetOptions {
        size: size_of::<TercetOptions>(),
        max_history: input.number() as i32,
        copy: input.byte() % 2,
        verify: input.byte() % 2,
        adapt: input.byte() % 2,
    };
    // SAFETY: in all that follows pointers are null, or lead to live values of the right type with
    // the sizes given, and texts end with 0; everything else is what the bytes say.
    unsafe {
        let opened = tercet_open(shop().as_ptr(), &options, &mut engine);
        check(opened);
        assert_eq!(opened == TercetStatus::Ok, !engine.is_null());
        while !input.0.is_empty() {
            let status = match input.byte() % 16 {
                0 | 1 => {
                    let (item, behavior) = (input.text(), input.text());
                    let behavior = match input.byte() % 3 {
                        0 => null(),
                        1 => c"view".as_ptr(),
                        _ => behavior.as_ptr(),
                    };
                    tercet_record(
                        engine,
                        item.as_ptr(),
                        behavior,
                        input.number() as i64,
                        null_mut(),
                    )
                }
                2 | 3 => {
                    let filter = input.text();
                    let keys = [input.text(), input.text()];
                    let exclude = keys.each_ref().map(|k| k.as_ptr());
                    let mut query = TercetQuery::top(input.number() as usize);
                    if input.byte() % 2 == 0 {
                        query.filter = filter.as_ptr();
                    }
                    query.exclude = exclude.as_ptr();
                    query.exclude_count = usize::from(input.byte() % 3);
                    query.pool = input.number() as usize;
                    query.diversity = input.float();
                    query.include_seen = input.byte();
                    query.explain = input.byte();
                    query.dpp = input.byte();
                    query.popularity = input.float();
                    query.explore = input.float();
                    query.seed = input.number();
                    query.probes = input.number() as i32;
                    tercet_results_free(&mut results);
                    tercet_recommend(engine, &query, &mut results)
                }
                4 => {
                    let keys = [input.text(), input.text(), input.text()];
                    let keys = keys.each_ref().map(|k| k.as_ptr());
                    tercet_results_free(&mut results);
                    let count = usize::from(input.byte() % 4);
                    tercet_rank(engine, keys.as_ptr(), count, &mut results)
                }
                5 => {
                    let item = input.text();
                    tercet_results_free(&mut results);
                    tercet_similar(engine, item.as_ptr(), input.number() as usize, &mut results)
                }
                6 => {
                    let mut hits: [TercetHit; 4] = std::array::from_fn(|_| std::mem::zeroed());
                    let query = TercetQuery::top(input.number() as usize);
                    let capacity = usize::from(input.byte() % 5);
                    tercet_recommend_into(engine, &query, hits.as_mut_ptr(), capacity, &mut needed)
                }
                7 => {
                    let mut entries: [TercetRecommendation; 3] =
                        std::array::from_fn(|_| std::mem::zeroed());
                    tercet_results_get(
                        results,
                        input.number() as usize,
                        entries.as_mut_ptr(),
                        // An older host's structure may be shorter, none longer.
                        usize::from(input.byte()) % (size_of::<TercetRecommendation>() + 1),
                        usize::from(input.byte() % 4),
                        &mut needed,
                    )
                }
                8 => {
                    let mut entries: [TercetBecause; 3] =
                        std::array::from_fn(|_| std::mem::zeroed());
                    let size = size_of::<TercetBecause>();
                    let index = input.number() as usize;
                    tercet_results_because(
                        results,
                        index,
                        entries.as_mut_ptr(),
                        size,
                        3,
                        &mut needed,
                    )
                }
                9 => {
                    let capacity = usize::from(input.byte()).min(buffer.len());
                    let row = input.number() as u32;
                    tercet_item_key(engine, row, buffer.as_mut_ptr(), capacity, &mut needed)
                }
                10 => {
                    let capacity = usize::from(input.byte()).min(buffer.len());
                    let index = input.number() as usize;
                    tercet_history_item(engine, index, buffer.as_mut_ptr(), capacity, &mut needed)
                }
                11 => {
                    let mut values = [0f32; 16];
                    let capacity = usize::from(input.byte() % 17);
                    tercet_user_vector(engine, values.as_mut_ptr(), capacity, &mut needed)
                }
                12 => {
                    let item = input.text();
                    tercet_remove_item(engine, item.as_ptr(), null_mut())
                }
                13 if input.byte() % 2 == 0 => {
                    let (item, kind) = (input.text(), i32::from(input.byte() % 4));
                    tercet_feedback(engine, item.as_ptr(), kind, TERCET_NO_TIME, null_mut())
                }
                13 => tercet_erase(engine, null()),
                // A handle that was freed, or never was one: addresses are only compared.
                14 => {
                    let stray = std::ptr::without_provenance_mut(input.number() as usize);
                    tercet_verify(stray)
                }
                _ => tercet_describe(engine, buffer.as_mut_ptr(), 8, &mut needed),
            };
            check(status);
        }
        check(tercet_results_free(&mut results));
        if !engine.is_null() {
            assert!(tercet_close(&mut engine) == TercetStatus::Ok && engine.is_null());
        }
    }
}

fn check(status: TercetStatus) {
    assert!(!tercet_status_name(status as i32).is_null());
}
