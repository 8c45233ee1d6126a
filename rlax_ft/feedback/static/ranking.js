// Ranking of three and more: letters in places, moved by drag, by a digit for the marked one, or by the arrow keys.

import { make } from './markdown.js';
import { $, LETTERS } from './view.js';

const ORDINALS = ['1st', '2nd', '3rd', '4th', '5th', '6th', '7th', '8th', '9th'];

export class Ranking {
  constructor(ranks, changed) {
    this.ranks = [...ranks];
    this.changed = changed;
    this.current = Math.max(0, this.ranks.indexOf(null));
    this.dropped = -1000; // When a drag ended, which is no click.
    this.draw();
  }

  mark(i) {
    this.current = i;
    this.draw();
  }

  step(by) {
    this.mark((this.current + by + this.ranks.length) % this.ranks.length);
  }

  // Gives the marked response a place, and marks the next that has none.
  place(rank) {
    this.ranks[this.current] = rank;
    const count = this.ranks.length;
    for (let i = 1; i <= count; i += 1) {
      const other = (this.current + i) % count;
      if (this.ranks[other] === null) {
        this.current = other;
        break;
      }
    }
    this.draw();
    this.changed([...this.ranks]);
  }

  // Without a drag: a click on a place gives it to the marked response.
  tap(event, rank) {
    if (!event.target.closest('.chip') && event.timeStamp > this.dropped + 300) this.place(rank);
  }

  draw() {
    const box = $('#tiers');
    const focused = document.activeElement?.dataset?.chip;
    box.replaceChildren();
    const unplaced = this.ranks.some((rank) => rank === null);
    for (let rank = unplaced ? -1 : 0; rank < this.ranks.length; rank += 1) {
      const tier = make('li', box, undefined, 'tier');
      tier.dataset.rank = rank;
      make('span', tier, rank < 0 ? 'not yet' : ORDINALS[rank], 'ordinal');
      if (rank >= 0) tier.addEventListener('click', (event) => this.tap(event, rank));
      this.ranks.forEach((own, i) => {
        if ((own ?? -1) === rank) this.chip(tier, i);
      });
    }
    document.querySelectorAll('.response').forEach((node, i) => {
      node.classList.toggle('current', i === this.current);
      node.querySelector('.place').textContent = this.ranks[i] === null ? '' : ORDINALS[this.ranks[i]];
    });
    if (focused !== undefined) box.querySelector(`[data-chip="${focused}"]`)?.focus();
  }

  chip(tier, i) {
    const chip = make('button', tier, LETTERS[i], 'chip');
    chip.type = 'button';
    chip.dataset.chip = i;
    chip.classList.toggle('current', i === this.current);
    const place = this.ranks[i] === null ? 'no place yet' : ORDINALS[this.ranks[i]];
    chip.setAttribute('aria-label', `Response ${LETTERS[i]}, ${place}; a digit gives it a place`);
    if (i === this.current) chip.setAttribute('aria-current', 'true');
    chip.addEventListener('focus', () => { if (this.current !== i) this.mark(i); });
    chip.addEventListener('pointerdown', (event) => this.drag(event, chip, i));
  }

  drag(event, chip, i) {
    if (event.button) return;
    const from = [event.clientX, event.clientY];
    // The chip itself takes no part: .dragged has no pointer events.
    const over = (e) => document.elementFromPoint(e.clientX, e.clientY)?.closest('.tier');
    const mark = (tier) => document.querySelectorAll('.tier').forEach((node) => node.classList.toggle('over', node === tier));
    const move = (e) => {
      chip.classList.add('dragged');
      chip.style.transform = `translate(${e.clientX - from[0]}px, ${e.clientY - from[1]}px)`;
      mark(over(e));
    };
    const stop = (e, dropped) => {
      chip.removeEventListener('pointermove', move);
      chip.removeEventListener('pointerup', drop);
      chip.removeEventListener('pointercancel', cancel);
      const tier = dropped && chip.classList.contains('dragged') ? over(e) : null; // While it takes no part.
      chip.classList.remove('dragged');
      chip.style.transform = '';
      mark(null);
      this.current = i;
      if (tier) this.dropped = e.timeStamp;
      if (tier) {
        const rank = Number(tier.dataset.rank);
        this.ranks[i] = rank < 0 ? null : rank;
      }
      this.draw();
      if (tier) this.changed([...this.ranks]);
    };
    const drop = (e) => stop(e, true);
    const cancel = (e) => stop(e, false);
    chip.setPointerCapture(event.pointerId);
    chip.addEventListener('pointermove', move);
    chip.addEventListener('pointerup', drop);
    chip.addEventListener('pointercancel', cancel);
    event.preventDefault();
  }
}
