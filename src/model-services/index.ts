export * from './drivers/media.driver';
export * from './drivers/text-driver';
export * from './drivers/token-estimate';
export * from './drivers/tool-calls';
export type { ModelPrice } from './model-prices';
export * from './model-providers.repository';
export * from './model-services.module';
export * from './model-services.repository';
export * from './provider-failure';
export * from './text-drivers';
import { ModelProviderEntity } from './model-provider.entity';
import { ModelServiceEntity } from './model-service.entity';

/** For the DataSource alone. */
export const modelServiceEntities = [ModelProviderEntity, ModelServiceEntity];
