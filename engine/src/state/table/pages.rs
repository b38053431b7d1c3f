//! Items by number, in pages: a page that holds nothing is given back.

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

/// Items of a page.
const PAGE: usize = 1024;

/// Items under numbers that stay theirs. New ones get the lowest free number, so that the pages behind run empty when items
/// become fewer. What was never set, or was cleared, is the default.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    pages: Vec<Option<Page<T>>>,
    /// Pages in which a number is free, those included that are not there at the moment.
    open: BTreeSet<u32>,
    /// Items for which there is memory.
    room: usize,
}

#[derive(Debug)]
struct Page<T> {
    items: Vec<T>,
    /// Which of them are taken, a bit each.
    taken: [u64; PAGE / 64],
    count: usize,
}

impl<T> Page<T> {
    fn new() -> Self {
        Page { items: vec![], taken: [0; PAGE / 64], count: 0 }
    }

    fn first_free(&self) -> Option<usize> {
        let word = self.taken.iter().position(|word| *word != u64::MAX)?;
        Some(word * 64 + self.taken[word].trailing_ones() as usize)
    }
}

impl<T: Clone + Default> Default for Pages<T> {
    fn default() -> Self {
        Pages { pages: vec![], open: BTreeSet::new(), room: 0 }
    }
}

fn place(number: u32) -> (usize, usize) {
    (number as usize / PAGE, number as usize % PAGE)
}

/// The item of a number that somebody was given: that there is none is a fault of the engine.
impl<T: Clone + Default> Index<u32> for Pages<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        self.get(number).unwrap_or_else(|| panic!("nothing was ever stored under the number {number}"))
    }
}

impl<T: Clone + Default> IndexMut<u32> for Pages<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        self.get_mut(number).unwrap_or_else(|| panic!("nothing was ever stored under the number {number}"))
    }
}

impl<T: Clone + Default> Pages<T> {
    /// The item of a number; none where there is no page for it.
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        let (page, at) = place(number);
        self.pages.get(page)?.as_ref()?.items.get(at)
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let (page, at) = place(number);
        self.pages.get_mut(page)?.as_mut()?.items.get_mut(at)
    }

    /// Puts an item under a free number. None if all numbers are taken, but for the last, which stands for none.
    pub(crate) fn insert(&mut self, item: T) -> Option<u32> {
        let page = match self.open.first() {
            Some(page) => *page,
            None => {
                let page = u32::try_from(self.pages.len()).ok().filter(|page| *page < u32::MAX / PAGE as u32)?;
                self.pages.push(None);
                self.open.insert(page);
                page
            }
        };
        let at = self.pages.get(page as usize)?.as_ref().map_or(Some(0), Page::first_free)?;
        let number = page * PAGE as u32 + at as u32;
        self.set(number, item);
        Some(number)
    }

    /// Puts an item under a number, in the place of what was there.
    pub(crate) fn set(&mut self, number: u32, item: T) {
        let (page_number, at) = place(number);
        while self.pages.len() <= page_number {
            self.open.insert(self.pages.len() as u32);
            self.pages.push(None);
        }
        let page = self.pages[page_number].get_or_insert_with(Page::new);
        if page.items.len() <= at {
            let before = page.items.capacity();
            page.items.resize(at + 1, T::default());
            self.room += page.items.capacity() - before;
        }
        page.items[at] = item;
        let bit = 1 << (at % 64);
        if page.taken[at / 64] & bit == 0 {
            page.taken[at / 64] |= bit;
            page.count += 1;
            if page.count == PAGE {
                self.open.remove(&(page_number as u32));
            }
        }
    }

    /// Frees a number.
    pub(crate) fn clear(&mut self, number: u32) {
        let (page_number, at) = place(number);
        let Some(Some(page)) = self.pages.get_mut(page_number) else { return };
        let bit = 1 << (at % 64);
        if at >= page.items.len() || page.taken[at / 64] & bit == 0 {
            return;
        }
        page.items[at] = T::default();
        page.taken[at / 64] &= !bit;
        page.count -= 1;
        self.open.insert(page_number as u32);
        if page.count == 0 {
            self.room -= page.items.capacity();
            self.pages[page_number] = None;
            while self.pages.last().is_some_and(Option::is_none) {
                self.pages.pop();
                self.open.remove(&(self.pages.len() as u32));
            }
            if self.pages.len() < self.pages.capacity() / 4 {
                self.pages.shrink_to(2 * self.pages.len());
            }
        }
    }

    /// The numbers that are taken.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> {
        let pages = self.pages.iter().enumerate().filter_map(|(number, page)| Some((number, page.as_ref()?)));
        pages.flat_map(|(number, page)| {
            let taken = |at: &usize| page.taken[at / 64] & (1 << (at % 64)) != 0;
            (0..page.items.len()).filter(taken).map(move |at| (number * PAGE + at) as u32)
        })
    }

    /// Memory held, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.room * size_of::<T>() + self.pages.capacity() * size_of::<Option<Page<T>>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_the_lowest_first() {
        let mut pages: Pages<u64> = Pages::default();
        let numbers: Vec<u32> = (0..3000).map(|item| pages.insert(item).unwrap()).collect();
        assert_eq!(numbers, (0..3000).collect::<Vec<u32>>());
        for number in [2999, 7, 1024] {
            pages.clear(number);
            pages.clear(number);
        }
        assert_eq!(pages.get(7), Some(&0));
        assert_eq!([pages.insert(1), pages.insert(2), pages.insert(3)], [Some(7), Some(1024), Some(2999)]);
        assert_eq!((pages.get(7), pages.get(1024), pages.get(5)), (Some(&1), Some(&2), Some(&5)));
        assert_eq!(pages.numbers().count(), 3000);
    }

    #[test]
    fn what_is_cleared_gives_its_memory_back() {
        let mut pages: Pages<u64> = Pages::default();
        (0..100_000).for_each(|item| assert!(pages.insert(item).is_some()));
        let full = pages.memory();
        (0..100_000).filter(|number| number % 5000 != 0).for_each(|number| pages.clear(number));
        assert!(pages.memory() < full / 3, "{} of {full}", pages.memory());
        assert_eq!(pages.numbers().count(), 20);
        (0..100_000).for_each(|number| pages.clear(number));
        assert_eq!((pages.room, pages.pages.len()), (0, 0));
        assert_eq!(pages.insert(1), Some(0));
    }

    #[test]
    fn an_item_may_be_set_anywhere() {
        let mut pages: Pages<i64> = Pages::default();
        pages.set(5000, 7);
        assert_eq!((pages.get(5000), pages.get(4999), pages.get(10)), (Some(&7), Some(&0), None));
        assert_eq!(pages.insert(8), Some(0));
        pages.clear(5000);
        assert_eq!(pages.numbers().collect::<Vec<_>>(), [0]);
    }
}
