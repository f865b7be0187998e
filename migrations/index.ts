import { CreateFoundation1795219200000 } from './1795219200000-create-foundation';

/** In order; a new migration is added at the end. */
export const migrations = [CreateFoundation1795219200000];
