import type { TenantId } from '../common';
import { ShareTaken, TenantSlots } from './tenant-slots';

const [A, B, C] = ['1', '2', '3'] as TenantId[] as [TenantId, TenantId, TenantId];

function refusal(slots: TenantSlots, tenantId: TenantId): unknown {
  try {
    slots.take(tenantId);
  } catch (error) {
    return error;
  }
  throw new Error('it was let in');
}

describe('slots of which a tenant has a share', () => {
  it('are half of all for one tenant, rounded up; the rest stays for others', () => {
    const slots = new TenantSlots('uploads', 3);
    slots.take(A);
    const giveBack = slots.take(A);
    const over = refusal(slots, A);
    expect(over).toBeInstanceOf(ShareTaken);
    expect(over).toMatchObject({
      code: 'RATE_LIMITED',
      retryAfterSeconds: 1,
      message:
        'This tenant has 2 uploads under way, as many as one tenant may; come back when some have ended.',
    });
    slots.take(B);
    expect(refusal(slots, C)).toMatchObject({ code: 'OVERLOADED', retryAfterSeconds: 1 });
    giveBack();
    slots.take(C);
  });

  it('are as many as the operator says', () => {
    const slots = new TenantSlots('uploads', 10, 1);
    slots.take(A);
    expect(refusal(slots, A)).toBeInstanceOf(ShareTaken);
    slots.take(B);
    const whole = new TenantSlots('uploads', 2, 5);
    whole.take(A);
    whole.take(A);
    expect(refusal(whole, A)).toMatchObject({ code: 'OVERLOADED' });
  });

  it('given back twice are given back once', () => {
    const slots = new TenantSlots('uploads', 4);
    const giveBack = slots.take(A);
    slots.take(A);
    giveBack();
    giveBack();
    slots.take(A);
    expect(refusal(slots, A)).toBeInstanceOf(ShareTaken);
  });
});
