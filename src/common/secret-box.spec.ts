import { createCipheriv, hkdfSync } from 'node:crypto';
import { SecretBox, UnreadableSecretError } from './secret-box';

const [OLD, NEW] = ['k'.repeat(32), 'n'.repeat(32)];
const box = new SecretBox(OLD);

it('opens what it sealed, in the same place, with the same key, untouched', () => {
  const sealed = box.seal('geheim 😀', 'row 1');
  expect(sealed).not.toContain('geheim');
  expect(box.seal('geheim 😀', 'row 1')).not.toBe(sealed);
  expect(box.open(sealed, 'row 1')).toBe('geheim 😀');
  const touched = `${sealed.slice(0, -2)}${sealed.endsWith('AA') ? 'BB' : 'AA'}`;
  for (const open of [
    () => box.open(sealed, 'row 2'),
    () => new SecretBox(NEW).open(sealed, 'row 1'),
    () => box.open(touched, 'row 1'),
    () => box.open(sealed.slice(0, 30), 'row 1'),
    () => box.open('', 'row 1'),
    () => box.open('nonsense', 'row 1'),
  ])
    expect(open).toThrow(UnreadableSecretError);
  expect(new SecretBox(NEW).tryOpen(sealed, 'row 1')).toBeNull();
});

it('opens what the key before sealed, and knows its own', () => {
  const changed = new SecretBox(NEW, OLD);
  const before = box.seal('old', 'row');
  const after = changed.seal('new', 'row');
  expect([changed.open(before, 'row'), changed.open(after, 'row')]).toEqual(['old', 'new']);
  expect([changed.isCurrent(before), changed.isCurrent(after)]).toEqual([false, true]);
  // The other way round, too: a process that has the key to come as its previous one reads what it will seal.
  expect(new SecretBox(OLD, NEW).open(after, 'row')).toBe('new');
  expect(box.tryOpen(after, 'row')).toBeNull();
});

it('opens what was sealed before keys had names, under either key', () => {
  const key = Buffer.from(hkdfSync('sha256', OLD, '', 'parley provider credentials v1', 32));
  const cipher = createCipheriv('aes-256-gcm', key, Buffer.alloc(12, 7)).setAAD(Buffer.from('row'));
  const text = Buffer.concat([cipher.update('older'), cipher.final()]);
  const sealed = `v1.${Buffer.concat([Buffer.alloc(12, 7), cipher.getAuthTag(), text]).toString('base64url')}`;
  expect([box.open(sealed, 'row'), new SecretBox(NEW, OLD).open(sealed, 'row')]).toEqual(['older', 'older']);
  expect(box.isCurrent(sealed)).toBe(false);
  expect(new SecretBox(NEW).tryOpen(sealed, 'row')).toBeNull();
});
